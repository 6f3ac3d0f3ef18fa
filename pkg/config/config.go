// Package config is solepod's configuration file: its types, defaults, strict
// reading and validation.
//
// +groupName=solepod.io
// +versionName=v1alpha1
package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
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

	// SelectorIncludesLabels says whether Airflow's selectors contain the
	// operator's own labels, which they do from provider 7.4.1 on. Set it to
	// false if one of the environments has an older provider. Default: true.
	SelectorIncludesLabels *bool `json:"selectorIncludesLabels,omitempty"`

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
	Claims Claims `json:"claims,omitempty"`

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

	// SelectorIncludesLabels is the setting of the same name for this
	// environment. Default: that of the whole configuration.
	SelectorIncludesLabels *bool `json:"selectorIncludesLabels,omitempty"`
}

// Claims are the settings of claims.
type Claims struct {
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

// Default returns the configuration of an empty file.
func Default() Configuration {
	var c Configuration
	c.setDefaults()
	return c
}

// Load reads the configuration from a file; an empty path means Default. The
// error names each wrong field, its value and what it may be.
func Load(path string) (Configuration, error) {
	if path == "" {
		return Default(), nil
	}
	content, err := os.ReadFile(path) //nolint:gosec // the administrator's own --config
	if err != nil {
		return Configuration{}, fmt.Errorf("reading the configuration: %w", err)
	}
	c, err := Parse(content)
	if err != nil {
		return Configuration{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// String is the configuration in one line, as the log of a start shows it.
func (c Configuration) String() string {
	line, err := json.Marshal(c)
	if err != nil {
		return err.Error()
	}
	return string(line)
}

// Parse is Load for the content of a file.
func Parse(content []byte) (Configuration, error) {
	var c Configuration
	if err := yaml.UnmarshalStrict(content, &c); err != nil {
		return Configuration{}, err
	}
	if errs := c.validateType(); len(errs) > 0 {
		return Configuration{}, errs.ToAggregate()
	}
	c.setDefaults()
	return c, c.validate().ToAggregate()
}

func (c *Configuration) setDefaults() {
	c.APIVersion, c.Kind = APIVersion, Kind
	c.EnvironmentLabel = cmp.Or(c.EnvironmentLabel, taskpod.DefaultEnvironmentLabel)
	c.Injection = cmp.Or(c.Injection, InjectionStamp)
	// To YAML 1.1, an unquoted Off is a boolean.
	if c.Injection == "false" {
		c.Injection = InjectionOff
	}
	c.ForeignAccess = cmp.Or(c.ForeignAccess, ForeignAccessDeny)
	if c.ForeignAccess == "false" {
		c.ForeignAccess = ForeignAccessOff
	}
	c.Disclosure = cmp.Or(c.Disclosure, DisclosureFull)
	if c.Claims.Patience == nil {
		c.Claims.Patience = &metav1.Duration{Duration: time.Second}
	}
	if c.SelectorIncludesLabels == nil {
		yes := true
		c.SelectorIncludesLabels = &yes
	}
	c.Enforcement = cmp.Or(c.Enforcement, EnforcementDeny)
	c.Retries = cmp.Or(c.Retries, RetriesAllow)
	c.OnError = cmp.Or(c.OnError, OnErrorDeny)
}

func (c *Configuration) validateType() field.ErrorList {
	var errs field.ErrorList
	if c.APIVersion != APIVersion {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), c.APIVersion, []string{APIVersion}))
	}
	if c.Kind != Kind {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), c.Kind, []string{Kind}))
	}
	return errs
}

func (c *Configuration) validate() field.ErrorList {
	label := field.NewPath("environmentLabel")
	errs := metav1validation.ValidateLabelName(c.EnvironmentLabel, label)
	if slices.Contains(taskpod.AirflowLabels(), c.EnvironmentLabel) {
		errs = append(errs, field.Invalid(label, c.EnvironmentLabel, "is one of Airflow's own labels; choose another key"))
	}
	errs = append(errs, oneOf("injection", c.Injection, InjectionOff, InjectionStamp, InjectionRequire)...)
	errs = append(errs, oneOf("enforcement", c.Enforcement, EnforcementDeny, EnforcementWarn, EnforcementAudit)...)
	errs = append(errs, oneOf("retries", c.Retries, RetriesAllow, RetriesSupersede)...)
	errs = append(errs, oneOf("foreignAccess", c.ForeignAccess, ForeignAccessDeny, ForeignAccessAudit, ForeignAccessOff)...)
	errs = append(errs, oneOf("disclosure", c.Disclosure, DisclosureFull, DisclosureDiscreet)...)
	if p := c.Claims.Patience.Duration; p < 0 || p > maxPatience {
		errs = append(errs, field.Invalid(field.NewPath("claims", "patience"), p.String(), "must be from 0s to "+maxPatience.String()))
	}
	errs = append(errs, c.validateEnvironments()...)
	errs = append(errs, oneOf("onError", c.OnError, OnErrorDeny, OnErrorAllow)...)
	return errs
}

// maxPatience leaves time to answer within a webhook's timeout.
const maxPatience = 5 * time.Second

// validateEnvironments sees to it that nobody belongs to two environments by
// name. Of groups that cannot be known here.
func (c *Configuration) validateEnvironments() field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	unique := func(path *field.Path, kind, value string) {
		if value == "" {
			errs = append(errs, field.Required(path, "must not be empty"))
		} else if key := kind + " " + value; seen[key] {
			errs = append(errs, field.Duplicate(path, value))
		} else {
			seen[key] = true
		}
	}
	for i, e := range c.Environments {
		path := field.NewPath("environments").Index(i)
		unique(path.Child("name"), "environment", e.Name)
		for _, problem := range validation.IsValidLabelValue(e.Name) {
			errs = append(errs, field.Invalid(path.Child("name"), e.Name, problem))
		}
		for j, user := range e.Users {
			unique(path.Child("users").Index(j), "user", user)
		}
		for j, group := range e.Groups {
			unique(path.Child("groups").Index(j), "group", group)
		}
		for j, account := range e.ServiceAccounts {
			at := path.Child("serviceAccounts").Index(j)
			unique(at, "ServiceAccount", account)
			if namespace, name, ok := strings.Cut(account, "/"); !ok || len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1123Subdomain(name)) > 0 {
				errs = append(errs, field.Invalid(at, account, "must be namespace/name"))
			}
		}
	}
	return errs
}

func oneOf[T ~string](name string, value T, valid ...T) field.ErrorList {
	for _, v := range valid {
		if value == v {
			return nil
		}
	}
	return field.ErrorList{field.NotSupported(field.NewPath(name), value, valid)}
}

// Policy returns the settings that decisions depend on.
func (c *Configuration) Policy() policy.Settings {
	exceptions := map[string]bool{}
	for _, e := range c.Environments {
		if e.SelectorIncludesLabels != nil && *e.SelectorIncludesLabels != *c.SelectorIncludesLabels {
			exceptions[e.Name] = *e.SelectorIncludesLabels
		}
	}
	return policy.Settings{
		EnvironmentLabel:       c.EnvironmentLabel,
		RequireDeclared:        c.Injection == InjectionRequire,
		SelectorIncludesLabels: *c.SelectorIncludesLabels,
		SelectorExceptions:     exceptions,
		Discreet:               c.Disclosure == DisclosureDiscreet,
		SupersedeRetries:       c.Retries == RetriesSupersede,
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
