// Package config is solepod's configuration file: its types, defaults, strict
// reading and validation.
package config

import (
	"cmp"
	"fmt"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
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

	// Enforcement says what a denial does. Default: Deny.
	Enforcement Enforcement `json:"enforcement,omitempty"`

	// Retries says what becomes of the pod of an earlier try, if the same
	// environment creates one for a later try. Default: Allow.
	Retries Retries `json:"retries,omitempty"`

	// OnError says what happens to a task pod that solepod cannot decide on
	// because the API server does not answer it. Default: Deny.
	OnError OnError `json:"onError,omitempty"`
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
	// EnforcementAudit admits it and notes the denial in log and audit annotation.
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

// OnError is one of Deny and Allow.
type OnError string

// Values of OnError.
const (
	OnErrorDeny  OnError = "Deny"
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
	c, err := parse(content)
	if err != nil {
		return Configuration{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

func parse(content []byte) (Configuration, error) {
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
	if c.Injection == "false" {
		c.Injection = InjectionOff // to YAML 1.1, an unquoted Off is a boolean
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
	switch c.EnvironmentLabel {
	case taskpod.LabelOperator, taskpod.LabelDAG, taskpod.LabelTask, taskpod.LabelRun, taskpod.LabelExecutionDate,
		taskpod.LabelMapIndex, taskpod.LabelTry, taskpod.LabelChecked, taskpod.LabelWorker:
		errs = append(errs, field.Invalid(label, c.EnvironmentLabel, "is one of Airflow's own labels; choose another key"))
	}
	errs = append(errs, oneOf("injection", c.Injection, InjectionOff, InjectionStamp, InjectionRequire)...)
	errs = append(errs, oneOf("enforcement", c.Enforcement, EnforcementDeny, EnforcementWarn, EnforcementAudit)...)
	errs = append(errs, oneOf("retries", c.Retries, RetriesAllow, RetriesSupersede)...)
	errs = append(errs, oneOf("onError", c.OnError, OnErrorDeny, OnErrorAllow)...)
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
	return policy.Settings{
		EnvironmentLabel:       c.EnvironmentLabel,
		RequireDeclared:        c.Injection == InjectionRequire,
		SelectorIncludesLabels: *c.SelectorIncludesLabels,
		SupersedeRetries:       c.Retries == RetriesSupersede,
	}
}
