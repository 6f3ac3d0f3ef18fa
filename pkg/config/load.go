package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/solepod/solepod/pkg/taskpod"
)

// Default returns the configuration of an empty file.
func Default() Configuration {
	var c Configuration
	c.setDefaults()
	return c
}

// Load reads the configuration from a file. An empty path means Default. The error
// names each invalid field, its value and the valid values.
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

// String returns the configuration in one line, for the log.
func (c Configuration) String() string {
	line, err := json.Marshal(c)
	if err != nil {
		return err.Error()
	}
	return string(line)
}

// Parse reads the configuration from the content of a file, as Load does.
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
	c.Enforcement = cmp.Or(c.Enforcement, EnforcementDeny)
	c.Retries = cmp.Or(c.Retries, RetriesAllow)
	c.OnError = cmp.Or(c.OnError, OnErrorDeny)
}
