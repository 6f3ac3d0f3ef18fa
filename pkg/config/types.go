// Package config is solepod's configuration file: its types, defaults, strict
// reading and validation.
//
// +groupName=solepod.io
// +versionName=v1alpha1
package config

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/solepod/solepod/pkg/policy"
)

// APIVersion and Kind of the configuration file.
const (
	APIVersion = "solepod.io/v1alpha1"
	Kind       = "Configuration"
)

// Configuration is the content of the file given by --config. All fields have
// defaults; unknown fields are errors.
//
// +kubebuilder:object:root=true
type Configuration struct {
	metav1.TypeMeta `json:",inline"`

	// EnvironmentLabel is the label key that names an Airflow environment, on
	// namespaces, ServiceAccounts and pods. Default: airflow-environment.
	EnvironmentLabel string `json:"environmentLabel,omitempty"`

	// Injection says what to do about task pods that do not declare their
	// environment although it is known. Default: Stamp.
	Injection Injection `json:"injection,omitempty"`

	// Environments says more about single environments. An environment need not
	// be listed: labels name it. Default: none.
	Environments []Environment `json:"environments,omitempty"`

	// Enforcement says what a denial does. Default: Deny.
	Enforcement Enforcement `json:"enforcement,omitempty"`

	// Retries says what becomes of the pod of an earlier try, if the same
	// environment creates one for a later try. Default: Allow.
	Retries Retries `json:"retries,omitempty"`

	// ForeignAccess says what happens when one environment updates, deletes or
	// connects to a task pod of another. Nothing is denied unless Enforcement
	// is Deny as well. Default: Deny.
	ForeignAccess ForeignAccess `json:"foreignAccess,omitempty"`

	// Disclosure says how much a denial tells of another environment's pod.
	// solepod's own log has it all. Default: Full.
	Disclosure Disclosure `json:"disclosure,omitempty"`

	// Claims are the settings of the claims that decide among creates at the
	// same moment.
	Claims ClaimSettings `json:"claims,omitempty"`

	// OnError says what happens to a task pod that solepod cannot decide on
	// because the API server does not answer it. Default: Deny.
	OnError OnError `json:"onError,omitempty"`
}

// Environment is what cannot be said by a label.
type Environment struct {
	// Name is the value of the environment label. Required.
	Name string `json:"name"`

	// Users are the names of users who belong to the environment, such as an
	// Airflow outside the cluster. This goes before all labels.
	Users []string `json:"users,omitempty"`

	// Groups are groups of users who belong to the environment.
	Groups []string `json:"groups,omitempty"`

	// ServiceAccounts, as namespace/name, belong to the environment.
	ServiceAccounts []string `json:"serviceAccounts,omitempty"`
}

// ClaimSettings are the settings of claims.
type ClaimSettings struct {
	// Patience is how long an admission waits for another pod of the task, which
	// was admitted but cannot be seen yet, before it is denied as InFlight.
	// At most 5s. Default: 1s.
	Patience *metav1.Duration `json:"patience,omitempty"`
}

// Injection is one of Off, Stamp and Require.
type Injection string

// Values of Injection.
const (
	// InjectionOff leaves pods as they are.
	InjectionOff Injection = "Off"
	// InjectionStamp adds the environment label to pods that lack it.
	InjectionStamp Injection = "Stamp"
	// InjectionRequire denies pods that do not declare their environment.
	InjectionRequire Injection = "Require"
)

// Enforcement is one of Deny, Warn and Audit.
type Enforcement string

// Values of Enforcement.
const (
	// EnforcementDeny rejects the request.
	EnforcementDeny Enforcement = "Deny"
	// EnforcementWarn admits it with an admission warning.
	EnforcementWarn Enforcement = "Warn"
	// EnforcementAudit admits it and notes the denial in log, metrics, event and audit annotation.
	EnforcementAudit Enforcement = "Audit"
)

// Retries is one of Allow and Supersede.
type Retries string

// Values of Retries.
const (
	// RetriesAllow leaves the earlier pod alone.
	RetriesAllow Retries = "Allow"
	// RetriesSupersede marks the earlier pod as checked, so that Airflow no
	// longer finds it, and deletes it.
	RetriesSupersede Retries = "Supersede"
)

// ForeignAccess is one of Deny, Audit and Off.
type ForeignAccess string

// Values of ForeignAccess.
const (
	// ForeignAccessDeny rejects the request.
	ForeignAccessDeny ForeignAccess = "Deny"
	// ForeignAccessAudit admits it and notes the denial in log, metrics, event and audit annotation.
	ForeignAccessAudit ForeignAccess = "Audit"
	// ForeignAccessOff does not look.
	ForeignAccessOff ForeignAccess = "Off"
)

// Disclosure is one of Full and Discreet.
type Disclosure string

// Values of Disclosure.
const (
	// DisclosureFull names the pod that is in the way, its environment and who
	// asked, so that whoever reads the task log knows what to do.
	DisclosureFull Disclosure = "Full"
	// DisclosureDiscreet says only that another environment has such a pod, for
	// environments that must not know of one another.
	DisclosureDiscreet Disclosure = "Discreet"
)

// OnError is one of Deny and Allow.
type OnError string

// Values of OnError.
const (
	// OnErrorDeny rejects the pod with status 500 or 503.
	OnErrorDeny OnError = "Deny"
	// OnErrorAllow admits it with an admission warning.
	OnErrorAllow OnError = "Allow"
)

// Policy returns the settings that decisions depend on.
func (c *Configuration) Policy() policy.Settings {
	return policy.Settings{
		EnvironmentLabel: c.EnvironmentLabel,
		RequireDeclared:  c.Injection == InjectionRequire,
		Discreet:         c.Disclosure == DisclosureDiscreet,
		SupersedeRetries: c.Retries == RetriesSupersede,
	}
}

// AccessEnforcement is what a denial of foreign access does: no more than any
// other denial.
func (c *Configuration) AccessEnforcement() Enforcement {
	if c.ForeignAccess == ForeignAccessAudit {
		return EnforcementAudit
	}
	return c.Enforcement
}
