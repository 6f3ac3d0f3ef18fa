package check

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dustin/go-humanize/english"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/installation"
	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

func (i *Installation) labels(ctx context.Context, settings config.Configuration) (finding, error) {
	key := settings.EnvironmentLabel
	named := map[string]bool{}
	var problems []string
	for _, kind := range []string{"Namespace", "ServiceAccount"} {
		err := metadata.Each(ctx, i.Client, metadata.List(kind), func(each runtime.Object) error {
			object := each.(*metav1.PartialObjectMetadata)
			where := kind + " " + strings.TrimPrefix(object.Namespace+"/"+object.Name, "/")
			for label, value := range object.Labels {
				switch {
				case label == key && value == "":
					problems = append(problems, fmt.Sprintf("%s of %s is empty", label, where))
				case label == key:
					named[value] = true
				case resembles(label, key):
					problems = append(problems, fmt.Sprintf("%s has the label %s, which resembles %s", where, label, key))
				}
			}
			return nil
		})
		if err != nil {
			return finding{}, err
		}
	}
	for _, e := range settings.Environments {
		if len(e.Users)+len(e.Groups)+len(e.ServiceAccounts) > 0 {
			named[e.Name] = true
		}
	}
	names := slices.Sorted(maps.Keys(named))
	for j, a := range names {
		for _, b := range names[j+1:] {
			if letters(a) == letters(b) {
				problems = append(problems, fmt.Sprintf("%s and %s are two different environments", a, b))
			}
		}
	}
	slices.Sort(problems)
	switch {
	case len(problems) > 0:
		return warning("%s", strings.Join(problems, "; ")), nil
	case len(names) == 0:
		return warning("no namespace and no ServiceAccount has the label %s", key), nil
	}
	return ok("%s", strings.Join(names, ", ")), nil
}

// resembles reports whether a label may be a misspelt key.
func resembles(label, key string) bool {
	const typos = 2
	return letters(label) == letters(key) || edits(label, key) <= typos
}

// edits is the Levenshtein distance: how many letters to insert, delete or
// replace to turn a into b.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}

func letters(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, s)
}

// scan is the cluster and the report of package audit.
type scan struct {
	cluster audit.Cluster
	report  audit.Report
	label   string // of environments
}

func (i *Installation) scan(ctx context.Context, settings config.Configuration) (scan, error) {
	cluster, err := audit.Source{Client: i.Client, Namespace: i.Namespace, Configuration: settings}.Collect(ctx)
	if err != nil {
		return scan{}, err
	}
	report := audit.Scan(cluster, audit.Options{Settings: settings.Policy(), OlderThan: audit.LeftoverAge, Now: i.Now()})
	return scan{cluster, report, settings.EnvironmentLabel}, nil
}

func undeclared(s scan) finding {
	none := map[string]int{} // pods, by namespace
	for _, pod := range s.cluster.Pods {
		if pod.Guarded() && pod.Environment(s.label) == "" {
			none[pod.Namespace]++
		}
	}
	var declared, problems []string
	for _, e := range s.report.Environments {
		if e.Undeclared() {
			problems = append(problems, fmt.Sprintf("no pod of environment %s declares it", e.Name))
		} else if e.Name != "" {
			declared = append(declared, e.Name)
		}
	}
	for _, namespace := range slices.Sorted(maps.Keys(none)) {
		problems = append(problems, fmt.Sprintf("%s in namespace %s without an environment", english.Plural(none[namespace], "task pod", ""), namespace))
	}
	switch {
	case len(problems) > 0:
		return warning("%s", strings.Join(problems, "; "))
	case len(declared) == 0:
		return skipped("there are no task pods")
	}
	return ok("%s", strings.Join(declared, ", "))
}

// randomSuffix is what Airflow appends to the name of a task pod: 8 characters, or a
// UUID in older providers.
var randomSuffix = regexp.MustCompile(`[-.]([a-z0-9]{8}|[0-9a-f]{32})$`)

// fixedNames finds task pods without a random suffix in namespaces with pods of
// several environments. Two pods cannot have one name. A retry of Airflow 3.3 takes
// the pod of the name that an earlier try has stored.
func fixedNames(s scan) finding {
	sharing := map[string]map[string]bool{} // environments, by namespace
	for _, pod := range s.cluster.Pods {
		if environment := pod.Environment(s.label); environment != "" && pod.Guarded() {
			if sharing[pod.Namespace] == nil {
				sharing[pod.Namespace] = map[string]bool{}
			}
			sharing[pod.Namespace][environment] = true
		}
	}
	var fixed []string
	guarded := 0
	for _, pod := range s.cluster.Pods {
		if !pod.Guarded() {
			continue
		}
		guarded++
		if len(sharing[pod.Namespace]) > 1 && !randomSuffix.MatchString(pod.Name) {
			fixed = append(fixed, fmt.Sprintf("pod %s/%s, environment %s", pod.Namespace, pod.Name, cmp.Or(pod.Environment(s.label), "unknown")))
		}
	}
	slices.Sort(fixed)
	switch {
	case guarded == 0:
		return skipped("there are no task pods")
	case len(fixed) > 0:
		return warning("%s with a fixed name, where environments share a namespace, for example %s", english.Plural(len(fixed), "task pod", ""), fixed[0])
	}
	return ok("no fixed name where environments share a namespace")
}

// probe creates a task pod as a dry run in a guarded namespace with the environment
// label, key. It returns the environment of the namespace. empty gives the pod an empty
// environment label, which is wrong for every requester.
func (i *Installation) probe(ctx context.Context, key string, empty bool) (pod *corev1.Pod, environment string, err error) {
	var list corev1.NamespaceList
	if err := i.Client.List(ctx, &list, client.HasLabels{key}); err != nil {
		return nil, "", err
	}
	hooks, _, err := i.installed(ctx)
	if err != nil {
		return nil, "", err
	}
	list.Items = slices.DeleteFunc(list.Items, func(n corev1.Namespace) bool {
		selector, err := metav1.LabelSelectorAsSelector(hooks[installation.GuardHook].namespaces)
		return err != nil || !selector.Matches(labels.Set(n.Labels)) || n.DeletionTimestamp != nil || n.Labels[key] == ""
	})
	if len(list.Items) == 0 {
		return nil, "", nil
	}
	namespace := list.Items[0]
	pod = &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace.Name, GenerateName: "solepod-check-", Labels: map[string]string{
			taskpod.LabelOperator: taskpod.True, taskpod.LabelDAG: "solepod-check", taskpod.LabelTask: "solepod-check",
			taskpod.LabelRun: string(types.UID(fmt.Sprint(i.Now().UnixNano()))), taskpod.LabelTry: "1",
		}},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			// The restricted Pod Security Standard requires these.
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: ptr.To(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "base", Image: "registry.k8s.io/pause",
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m"), corev1.ResourceMemory: resource.MustParse("1Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m"), corev1.ResourceMemory: resource.MustParse("1Mi")},
				},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: ptr.To(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
	if empty {
		pod.Labels[key] = ""
	}
	return pod, namespace.Labels[key], i.Client.Create(ctx, pod, client.DryRunAll)
}

const noNamespace = "no guarded namespace has the environment label"

func (i *Installation) stamp(ctx context.Context, settings config.Configuration) (finding, error) {
	injection := settings.Injection
	if injection == config.InjectionOff {
		return skipped("injection is Off"), nil
	}
	pod, environment, err := i.probe(ctx, settings.EnvironmentLabel, false)
	switch {
	case pod == nil && err == nil:
		return skipped(noNamespace), nil
	case injection == config.InjectionRequire && apierrors.IsForbidden(err) && strings.Contains(err.Error(), string(policy.EnvironmentNotDeclared)):
		return ok("denied in namespace %s, because injection is Require", pod.Namespace), nil
	case pod == nil:
		return finding{}, err
	case err != nil:
		return failed("in namespace %s: %v", pod.Namespace, err), nil
	}
	if got := pod.Labels[settings.EnvironmentLabel]; got != environment {
		return failed("in namespace %s, the pod got environment %q, want %q", pod.Namespace, got, environment), nil
	}
	return ok("%s in namespace %s", environment, pod.Namespace), nil
}

func (i *Installation) guard(ctx context.Context, settings config.Configuration) (finding, error) {
	if enforcement := settings.Enforcement; enforcement != config.EnforcementDeny {
		return skipped("enforcement is %s", enforcement), nil
	}
	pod, _, err := i.probe(ctx, settings.EnvironmentLabel, true)
	switch {
	case pod == nil && err == nil:
		return skipped(noNamespace), nil
	case pod == nil:
		return finding{}, err
	case err == nil:
		return failed("admitted in namespace %s", pod.Namespace), nil
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), string(policy.EnvironmentMismatch)):
		return ok("%s in namespace %s", policy.EnvironmentMismatch, pod.Namespace), nil
	}
	return failed("in namespace %s: %v", pod.Namespace, err), nil
}

func (i *Installation) leader(ctx context.Context) (finding, error) {
	const late = time.Minute // leases last 15 s
	var lease coordinationv1.Lease
	if err := i.Client.Get(ctx, i.key(), &lease); apierrors.IsNotFound(err) {
		return failed("there is no Lease %s", i.key()), nil
	} else if err != nil {
		return finding{}, err
	}
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" || lease.Spec.RenewTime == nil {
		return failed("the Lease %s has no holder", i.key()), nil
	}
	if age := i.Now().Sub(lease.Spec.RenewTime.Time); age > late {
		return failed("%s renewed the Lease %s %s ago", *lease.Spec.HolderIdentity, i.key(), age.Round(time.Second)), nil
	}
	// The identity is the name of the pod and a UID.
	leader, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	return ok("%s", leader), nil
}

func claims(s scan) finding {
	all, broken, orphans := len(s.cluster.Claims), s.report.UnreadableClaims, s.report.ClaimsWithoutPods
	switch {
	case len(broken) > 0:
		return warning("%d of %d cannot be read, for example %s", len(broken), all, broken[0])
	case len(orphans) > 0:
		return warning("%d of %d have no pod, for example %s", len(orphans), all, orphans[0])
	}
	return ok("%d", all)
}
