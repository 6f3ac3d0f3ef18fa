// Package config defines solepod's configuration file: its types, defaults and
// validation. Unknown fields are errors.
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

// Configuration is the content of the file that --config names. All fields have
// defaults. Unknown fields are errors.
//
// +kubebuilder:object:root=true
type Configuration struct {
	metav1.TypeMeta `json:",inline"`

	// EnvironmentLabel is the key of the environment label, on namespaces,
	// ServiceAccounts and pods. Keys under solepod.io/ are not possible. Default:
	// airflow-environment.
	EnvironmentLabel string `json:"environmentLabel,omitempty"`

	// Injection is what happens to task pods that do not declare their environment
	// if the requester has one. Default: Stamp.
	Injection Injection `json:"injection,omitempty"`

	// Environments has settings of single environments. An environment that a label
	// names need not be listed. Default: none.
	Environments []Environment `json:"environments,omitempty"`

	// Enforcement is the effect of a denial. Default: Deny.
	Enforcement Enforcement `json:"enforcement,omitempty"`

	// Retries is what happens to the pod of an earlier try when the same environment
	// creates the pod of a later try. Default: Allow.
	Retries Retries `json:"retries,omitempty"`

	// ForeignAccess is what happens when one environment updates, deletes or connects
	// to a task pod of another. Deny has an effect only if Enforcement is Deny, too.
	// Default: Deny.
	ForeignAccess ForeignAccess `json:"foreignAccess,omitempty"`

	// Disclosure is how much a denial discloses about the pod of another environment.
	// The log of solepod always has the full message. Default: Full.
	Disclosure Disclosure `json:"disclosure,omitempty"`

	// Claims are the settings of claims, which decide between concurrent creates.
	Claims ClaimSettings `json:"claims,omitempty"`

	// OnError is what happens to a task pod if solepod cannot decide on it, for example
	// because the API server does not respond. Default: Deny.
	OnError OnError `json:"onError,omitempty"`
}

// Environment has settings of one environment.
type Environment struct {
	// Name is the value of the environment label. Required.
	Name string `json:"name"`

	// Users are the names of users that belong to the environment, for example of an
	// Airflow outside the cluster. They take precedence over labels. One * at the end
	// of a name stands for any text, for user names that end in a session:
	// arn:aws:sts::123456789012:assumed-role/airflow/*
	Users []string `json:"users,omitempty"`

	// Groups are groups of users that belong to the environment.
	Groups []string `json:"groups,omitempty"`

	// ServiceAccounts belong to the environment. Each has the form namespace/name.
	ServiceAccounts []string `json:"serviceAccounts,omitempty"`
}

// ClaimSettings are the settings of claims.
type ClaimSettings struct {
	// Patience is how long a create waits for a conflicting pod in flight before it is
	// denied with InFlight. At most 5s. Default: 1s.
	Patience *metav1.Duration `json:"patience,omitempty"`
}

// Injection is one of Off, Stamp and Require.
type Injection string

// Values of Injection.
const (
	// InjectionOff does not change pods.
	InjectionOff Injection = "Off"
	// InjectionStamp adds the environment label to pods without one.
	InjectionStamp Injection = "Stamp"
	// InjectionRequire denies pods that do not declare their environment.
	InjectionRequire Injection = "Require"
)

// Enforcement is one of Deny, Warn and Audit.
type Enforcement string

// Values of Enforcement.
const (
	// EnforcementDeny denies the request.
	EnforcementDeny Enforcement = "Deny"
	// EnforcementWarn admits it with an admission warning. Airflow does not show it.
	EnforcementWarn Enforcement = "Warn"
	// EnforcementAudit admits it and records the denial in log, metrics, event and audit annotation.
	EnforcementAudit Enforcement = "Audit"
)

// Retries is one of Allow and Supersede.
type Retries string

// Values of Retries.
const (
	// RetriesAllow does not change the earlier pod.
	RetriesAllow Retries = "Allow"
	// RetriesSupersede marks the earlier pod as checked, so that Airflow no
	// longer finds it, and deletes it. It does the same to a pod of an equal try that is
	// older than a minute. It has an effect only if Enforcement is Deny.
	RetriesSupersede Retries = "Supersede"
)

// ForeignAccess is one of Deny, Audit and Off.
type ForeignAccess string

// Values of ForeignAccess.
const (
	// ForeignAccessDeny denies the request.
	ForeignAccessDeny ForeignAccess = "Deny"
	// ForeignAccessAudit admits it and records the denial in log, metrics, event and audit annotation.
	ForeignAccessAudit ForeignAccess = "Audit"
	// ForeignAccessOff admits all requests.
	ForeignAccessOff ForeignAccess = "Off"
)

// Disclosure is one of Full and Discreet.
type Disclosure string

// Values of Disclosure.
const (
	// DisclosureFull names the conflicting pod, its environment and the requester.
	DisclosureFull Disclosure = "Full"
	// DisclosureDiscreet reports only that another environment has a conflicting pod,
	// for tenants that must not see one another.
	DisclosureDiscreet Disclosure = "Discreet"
)

// OnError is one of Deny and Allow.
type OnError string

// Values of OnError.
const (
	// OnErrorDeny denies the pod with status 500 or 503.
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
		SupersedeRetries: c.Retries == RetriesSupersede && c.Enforcement == EnforcementDeny,
	}
}

// AccessEnforcement returns the effect of a denial with ForeignEnvironment or
// IdentityChanged. It is not stricter than Enforcement.
func (c *Configuration) AccessEnforcement() Enforcement {
	if c.ForeignAccess == ForeignAccessAudit {
		return EnforcementAudit
	}
	return c.Enforcement
}
