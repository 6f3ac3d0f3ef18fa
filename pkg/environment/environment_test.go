package environment

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/policy"
)

// objects reads "kind namespace/name environment" lines; "-" is no label.
func objects(lines ...string) []runtime.Object {
	out := []runtime.Object{}
	for _, line := range lines {
		words := strings.Fields(line)
		o := metadata.Object(words[0])
		namespace, name, namespaced := strings.Cut(words[1], "/")
		if !namespaced {
			namespace, name = "", words[1]
		}
		o.ObjectMeta = metav1.ObjectMeta{Namespace: namespace, Name: name}
		if words[2] != "-" {
			o.Labels = map[string]string{"env": strings.Trim(words[2], "'")}
		}
		out = append(out, o)
	}
	return out
}

func reader(t *testing.T, lines ...string) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithRuntimeObjects(objects(lines...)...).Build()
}

func TestResolve(t *testing.T) {
	const airflow = "system:serviceaccount:airflow:scheduler"
	tests := map[string]struct {
		username string
		cached   []string
		live     []string
		want     string
	}{
		"the ServiceAccount goes first": {airflow,
			[]string{"ServiceAccount airflow/scheduler alpha", "Namespace airflow beta", "Namespace jobs gamma"}, nil, "alpha"},
		"then its namespace": {airflow,
			[]string{"ServiceAccount airflow/scheduler -", "Namespace airflow beta", "Namespace jobs gamma"}, nil, "beta"},
		"then the pod's namespace": {airflow,
			[]string{"ServiceAccount airflow/scheduler -", "Namespace airflow -", "Namespace jobs gamma"}, nil, "guess:gamma"},
		"an empty label names nothing": {airflow,
			[]string{"ServiceAccount airflow/scheduler ''", "Namespace airflow ''", "Namespace jobs gamma"}, nil, "guess:gamma"},
		"none":                             {airflow, []string{"ServiceAccount airflow/scheduler -", "Namespace airflow -", "Namespace jobs -"}, nil, ""},
		"all have vanished":                {airflow, nil, nil, ""},
		"not cached yet":                   {airflow, nil, []string{"ServiceAccount airflow/scheduler -", "Namespace airflow alpha"}, "alpha"},
		"a user has the pod's namespace's": {"jane", []string{"Namespace jobs gamma"}, nil, "guess:gamma"},
		"a ServiceAccount in the wrong form": {"system:serviceaccount:airflow",
			[]string{"Namespace airflow alpha", "Namespace jobs gamma"}, nil, "guess:gamma"},
		"nobody": {"", []string{"Namespace jobs gamma"}, nil, "guess:gamma"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := Resolver{Label: "env", Objects: metadata.Reader{Cache: reader(t, tc.cached...), Live: reader(t, tc.live...)}}
			requester, err := r.Resolve(t.Context(), authenticationv1.UserInfo{Username: tc.username}, "jobs")
			got := requester.Environment
			if requester.Guessed {
				got = "guess:" + got
			}
			if err != nil || got != tc.want || requester.Username != tc.username {
				t.Errorf("%+v, %v; want %q", requester, err, tc.want)
			}
			own, err := r.Resolve(t.Context(), authenticationv1.UserInfo{Username: tc.username}, "")
			if guess := strings.HasPrefix(tc.want, "guess:"); err != nil || own.Guessed || (own.Environment == "") != (guess || tc.want == "") {
				t.Errorf("without the pod's namespace %+v, %v", own, err)
			}
		})
	}
}

// A failed read must not turn a known environment into none.
func TestResolveFails(t *testing.T) {
	down := interceptor.NewClient(reader(t), interceptor.Funcs{
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return errors.New("connection refused")
		},
	})
	r := Resolver{Label: "env", Objects: metadata.Reader{Cache: reader(t, "Namespace airflow alpha"), Live: down}}
	_, err := r.Resolve(t.Context(), authenticationv1.UserInfo{Username: "system:serviceaccount:airflow:scheduler"}, "jobs")
	if err == nil || !strings.Contains(err.Error(), "ServiceAccount airflow/scheduler: connection refused") {
		t.Errorf("%v", err)
	}
}

func TestIdentify(t *testing.T) {
	cached := []string{"ServiceAccount airflow/scheduler alpha", "Namespace airflow beta", "Namespace jobs gamma"}
	environments := []config.Environment{
		{Name: "outside", Users: []string{"airflow@example.com"}, Groups: []string{"airflow-admins"}},
		{Name: "inside", ServiceAccounts: []string{"airflow/worker"}, Groups: []string{"data"}},
		{Name: "assumed", Users: []string{"arn:aws:sts::1:assumed-role/airflow/*"}},
	}
	for name, tc := range map[string]struct {
		user    authenticationv1.UserInfo
		want    string
		problem string
	}{
		"by user":           {authenticationv1.UserInfo{Username: "airflow@example.com"}, "outside", ""},
		"by session":        {authenticationv1.UserInfo{Username: "arn:aws:sts::1:assumed-role/airflow/1700000000"}, "assumed", ""},
		"by no session":     {authenticationv1.UserInfo{Username: "arn:aws:sts::1:assumed-role/airflow/"}, "assumed", ""},
		"by another role":   {authenticationv1.UserInfo{Username: "arn:aws:sts::1:assumed-role/airflow2/1700000000"}, "", ""},
		"by group":          {authenticationv1.UserInfo{Username: "jane", Groups: []string{"x", "data"}}, "inside", ""},
		"by ServiceAccount": {authenticationv1.UserInfo{Username: "system:serviceaccount:airflow:worker"}, "inside", ""},
		"the configuration goes before labels": {authenticationv1.UserInfo{
			Username: "system:serviceaccount:airflow:scheduler", Groups: []string{"data"}}, "inside", ""},
		"by label": {authenticationv1.UserInfo{Username: "system:serviceaccount:airflow:scheduler"}, "alpha", ""},
		"twice in one environment": {authenticationv1.UserInfo{
			Username: "airflow@example.com", Groups: []string{"airflow-admins"}}, "outside", ""},
		"in two environments": {authenticationv1.UserInfo{Username: "airflow@example.com", Groups: []string{"data"}}, "",
			`the configuration assigns user "airflow@example.com" to several environments: outside, inside; let its users, groups and serviceAccounts name one`},
		"another program else": {authenticationv1.UserInfo{Username: "jane"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := Resolver{Label: "env", Environments: environments, Objects: metadata.Reader{Cache: reader(t, cached...), Live: reader(t)}}
			got, err := r.Identify(t.Context(), tc.user)
			problem := ""
			if err != nil {
				problem = err.Error()
			}
			if got != tc.want || problem != tc.problem {
				t.Errorf("%q, %q; want %q, %q", got, problem, tc.want, tc.problem)
			}
		})
	}
}

// A user in two environments has both, and is not an error.
func TestAmbiguous(t *testing.T) {
	r := Resolver{Label: "env", Environments: []config.Environment{{Name: "alpha", Groups: []string{"a"}}, {Name: "beta", Groups: []string{"b"}}},
		Objects: metadata.Reader{Cache: reader(t, "Namespace jobs gamma"), Live: reader(t)}}
	got, err := r.Resolve(t.Context(), authenticationv1.UserInfo{Username: "jane", Groups: []string{"b", "a"}}, "jobs")
	want := policy.Requester{Username: "jane", Ambiguous: []string{"alpha", "beta"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}
