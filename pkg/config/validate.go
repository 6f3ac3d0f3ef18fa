package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/solepod/solepod/pkg/taskpod"
)

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
	// solepod gives keys of its own a meaning: claims would overwrite solepod.io/claim.
	if slices.Contains(taskpod.AirflowLabels(), c.EnvironmentLabel) || strings.HasPrefix(c.EnvironmentLabel, "solepod.io/") {
		errs = append(errs, field.Invalid(label, c.EnvironmentLabel, "has another meaning; choose another key"))
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

// maxPatience leaves time to respond within the timeout of a webhook.
const maxPatience = 5 * time.Second

// validateEnvironments checks that no user, group or ServiceAccount belongs to two
// environments. A user in groups of two environments is found at the request only.
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
			at := path.Child("users").Index(j)
			unique(at, "user", user)
			errs = append(errs, validateUser(at, user)...)
			for k, other := range c.Environments[:i] {
				if n := slices.IndexFunc(other.Users, func(o string) bool { return o != user && overlap(o, user) }); n >= 0 {
					errs = append(errs, field.Invalid(at, user, fmt.Sprintf("matches users that environments[%d].users[%d], %q, also matches; let the users of two environments differ", k, n, other.Users[n])))
				}
			}
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

// validateUser checks the * of a user name.
func validateUser(at *field.Path, user string) field.ErrorList {
	switch n := strings.Index(user, "*"); {
	case n < 0 || n == len(user)-1 && n > 0:
		return nil
	case user == "*":
		return field.ErrorList{field.Invalid(at, user, "matches all users; put the start of the names before the *")}
	}
	return field.ErrorList{field.Invalid(at, user, "may have one * only, at the end")}
}

// MatchesUser reports whether a user name matches one of [Environment.Users].
func MatchesUser(pattern, username string) bool {
	if prefix, cut := strings.CutSuffix(pattern, "*"); cut {
		return strings.HasPrefix(username, prefix)
	}
	return pattern == username
}

// overlap reports whether a user name can match both patterns.
func overlap(a, b string) bool {
	return MatchesUser(a, strings.TrimSuffix(b, "*")) || MatchesUser(b, strings.TrimSuffix(a, "*"))
}

func oneOf[T ~string](name string, value T, valid ...T) field.ErrorList {
	for _, v := range valid {
		if value == v {
			return nil
		}
	}
	return field.ErrorList{field.NotSupported(field.NewPath(name), value, valid)}
}
