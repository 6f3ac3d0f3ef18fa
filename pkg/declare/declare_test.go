package declare

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"sigs.k8s.io/yaml"
)

func podOf(t *testing.T, spec, annotations string) Pod {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte("metadata: {annotations: " + annotations + "}\nspec:\n  " + strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ")))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func one(fields string) string {
	return "containers:\n- {name: base, image: 'apache/airflow:3.0.6', args: [airflow, scheduler], " + fields + "}"
}

func TestPlan(t *testing.T) {
	const inHome = "/solepod_declare.py"
	for name, tc := range map[string]struct {
		spec, annotations string
		mounts            string // container=path, in their order
		problem           string
	}{
		"by the task SDK's command":       {spec: "containers: [{name: base, image: 'example.com/team/tasks:1', command: [python, -m, airflow.sdk.execution_time.execute_workload], volumeMounts: [{name: c, mountPath: /opt/airflow/airflow.cfg}]}]", mounts: "0=/opt/airflow/plugins" + inHome},
		"by the image alone":              {spec: "containers: [{name: x, image: 'localhost:5000/airflow'}]", mounts: "0=/opt/airflow/plugins" + inHome},
		"by a variable alone":             {spec: "containers: [{name: x, image: example.com/x, env: [{name: AIRFLOW_HOME, value: /srv}]}]", mounts: "0=/srv/plugins" + inHome},
		"by another variable alone":       {spec: "containers: [{name: x, image: example.com/x, env: [{name: AIRFLOW__CORE__PLUGINS_FOLDER, value: /p}]}]", mounts: "0=/p" + inHome},
		"by its configuration alone":      {spec: "containers: [{name: x, image: example.com/x, volumeMounts: [{name: c, mountPath: /srv/airflow.cfg}]}]", mounts: "0=/srv/plugins" + inHome},
		"variables of others":             {spec: "containers: [{name: x, image: example.com/x, env: [{name: HOME, value: /srv}], volumeMounts: [{name: c, mountPath: /srv/other.cfg}]}]"},
		"a DAG named like a sidecar":      {spec: "containers: [{name: base, image: x, args: [airflow, tasks, run, clean-logs, kerberos, r]}, {name: b, image: airflow}]", mounts: "1=/opt/airflow/plugins" + inHome, problem: "container base: the plugins folder is not known"},
		"a DAG named like one, 3":         {spec: "containers: [{name: base, image: airflow, args: [python, -m, airflow.sdk.execution_time.execute_workload, --json-string, '{\"dag_id\":\"git-sync\"}']}]", mounts: "0=/opt/airflow/plugins" + inHome},
		"a queue named like one":          {spec: "containers: [{name: x, image: airflow, args: [celery, worker, -q, flower]}, {name: second, image: airflow, args: [bash, -c, 'exec airflow celery worker -q kerberos']}]", mounts: "0=/opt/airflow/plugins" + inHome + " 1=/opt/airflow/plugins" + inHome},
		"sidecars":                        {spec: "containers: [{name: a, image: airflow, args: [celery, flower]}, {name: b, image: airflow, args: [/home/airflow/.local/bin/airflow, kerberos]}, {name: c, image: airflow, command: [dumb-init, --, /entrypoint], args: [kerberos]}, {name: d, image: airflow, args: [bash, -c, 'cd /opt/airflow && /clean-logs']}]"},
		"git-sync of a repository":        {spec: "containers: [{name: x, image: 'registry.k8s.io/git-sync/git-sync:v4.3.0', args: [--repo, 'https://example.com/team/airflow']}]"},
		"other programs of the project":   {spec: "containers: [{name: a, image: 'apache/airflow:airflow-pgbouncer-2024.01.19-1.21.0'}, {name: b, image: 'apache/airflow:airflow-pgbouncer-exporter-2024.06.18-0.17.0'}, {name: c, image: 'apache/airflow:airflow-statsd-exporter-2021.04.28-v0.17.0'}, {name: d, image: 'bitnami/airflow-exporter:0.20220314.0'}]"},
		"an own image of an exporter":     {spec: "containers: [{name: x, image: 'example.com/airflow-exporter', args: [airflow, scheduler], env: [{name: AIRFLOW_HOME, value: /srv}]}]", mounts: "0=/srv/plugins" + inHome},
		"two components in a pod":         {spec: "containers: [{name: x, image: airflow}, {name: second, image: postgres}, {name: z, image: airflow, args: [scheduler]}]", mounts: "0=/opt/airflow/plugins" + inHome + " 2=/opt/airflow/plugins" + inHome},
		"Bitnami's older images":          {spec: "containers: [{name: x, image: 'bitnamilegacy/airflow-worker'}]", mounts: "0=/opt/bitnami/airflow/plugins" + inHome},
		"a mirror of these":               {spec: "containers: [{name: x, image: 'example.com/airflow-worker'}]", problem: "container x: the plugins folder is not known"},
		"a home of its own":               {spec: one("env: [{name: AIRFLOW_HOME, value: /srv/af}]"), mounts: "0=/srv/af/plugins" + inHome},
		"a plugins folder of its own":     {spec: one("env: [{name: AIRFLOW_HOME, value: /srv/af}, {name: AIRFLOW__CORE__PLUGINS_FOLDER, value: /srv/plugins/}]"), mounts: "0=/srv/plugins" + inHome},
		"the last of two values":          {spec: one("env: [{name: AIRFLOW_HOME, value: /a}, {name: AIRFLOW_HOME, value: /b}]"), mounts: "0=/b/plugins" + inHome},
		"a home that refers to another":   {spec: one("env: [{name: AIRFLOW_HOME, value: $(HOME)/af}]"), problem: "container base: AIRFLOW_HOME is not a literal; set the annotation solepod.io/plugins-folder"},
		"a home from a ConfigMap":         {spec: one("env: [{name: AIRFLOW_HOME, valueFrom: {configMapKeyRef: {name: x, key: y}}}]"), problem: "AIRFLOW_HOME is not a literal"},
		"a plugins folder from a Secret":  {spec: one("env: [{name: AIRFLOW__CORE__PLUGINS_FOLDER, valueFrom: {secretKeyRef: {name: x, key: y}}}]"), problem: "AIRFLOW__CORE__PLUGINS_FOLDER is not a literal"},
		"unknown, but named by the user":  {spec: one("env: [{name: AIRFLOW_HOME, valueFrom: {configMapKeyRef: {name: x, key: y}}}]"), annotations: "{solepod.io/plugins-folder: /code/plugins}", mounts: "0=/code/plugins" + inHome},
		"a folder that the user names":    {spec: one("env: [{name: AIRFLOW_HOME, value: /srv/af}]"), annotations: "{solepod.io/plugins-folder: /code/plugins}", mounts: "0=/code/plugins" + inHome},
		"no Airflow":                      {spec: "containers: [{name: x, image: postgres, args: [postgres]}]"},
		"no containers":                   {spec: "volumes: []"},
		"an own image":                    {spec: "containers: [{name: x, image: example.com/airflow-etl, args: [airflow, scheduler]}]", problem: "container x: the plugins folder is not known"},
		"a relative folder":               {spec: one(""), annotations: "{solepod.io/plugins-folder: plugins}", problem: `the plugins folder "plugins" is not an absolute path`},
		"the root as folder":              {spec: one(""), annotations: "{solepod.io/plugins-folder: /}", problem: `the plugins folder "/" is not an absolute path`},
		"a volume on the plugins folder":  {spec: one("volumeMounts: [{name: p, mountPath: /opt/airflow/plugins/}]"), mounts: "0=/opt/airflow/config" + inHome + " (3 files)"},
		"a volume on both folders":        {spec: one("volumeMounts: [{name: c, mountPath: /opt/airflow/config}, {name: p, mountPath: /opt/airflow/plugins}]"), problem: "volume p is mounted on the plugins folder /opt/airflow/plugins; put solepod_declare.py into it"},
		"a file in the other folder":      {spec: one("volumeMounts: [{name: c, mountPath: /opt/airflow/config/airflow_local_settings.py}, {name: p, mountPath: /opt/airflow/plugins}]"), mounts: "0=/opt/airflow/config" + inHome + " (3 files)"},
		"a volume on another folder":      {spec: one("env: [{name: AIRFLOW__CORE__PLUGINS_FOLDER, value: /git/plugins}], volumeMounts: [{name: p, mountPath: /git}]"), mounts: "0=/opt/airflow/config" + inHome + " (3 files)"},
		"a volume on the user's folder":   {spec: one("volumeMounts: [{name: p, mountPath: /git}]"), annotations: "{solepod.io/plugins-folder: /git/plugins}", mounts: "0=/opt/airflow/config" + inHome + " (3 files)"},
		"a volume, and no known home":     {spec: "containers: [{name: x, image: example.com/x, env: [{name: AIRFLOW__CORE__PLUGINS_FOLDER, value: /p}], volumeMounts: [{name: p, mountPath: /p}]}]", problem: "volume p is mounted"},
		"both folders in a pod":           {spec: "containers: [{name: x, image: airflow, volumeMounts: [{name: p, mountPath: /opt/airflow/plugins}]}, {name: second, image: airflow}]", mounts: "0=/opt/airflow/config" + inHome + " (3 files) 1=/opt/airflow/plugins" + inHome},
		"a volume on the home":            {spec: one("volumeMounts: [{name: p, mountPath: /opt/airflow}]"), problem: "volume p is mounted on the plugins folder"},
		"a volume beside it":              {spec: one("volumeMounts: [{name: p, mountPath: /opt/airflow/plugins-of-others}]"), mounts: "0=/opt/airflow/plugins" + inHome},
		"a volume inside it":              {spec: one("volumeMounts: [{name: p, mountPath: /opt/airflow/plugins/ours}]"), mounts: "0=/opt/airflow/plugins" + inHome},
		"its own mount":                   {spec: one("volumeMounts: [{name: solepod-declare, mountPath: /opt/airflow/plugins/solepod_declare.py}]")},
		"the user's own file":             {spec: one("volumeMounts: [{name: ours, mountPath: /code/plugins/solepod_declare.py}]")},
		"another volume, mounted":         {spec: one("volumeMounts: [{name: solepod-declare, mountPath: /x}]") + "\nvolumes: [{name: solepod-declare, emptyDir: {}}]", problem: "the pod has another volume solepod-declare"},
		"another volume of its name":      {spec: one("") + "\nvolumes: [{name: solepod-declare, emptyDir: {}}]", problem: "the pod has another volume solepod-declare"},
		"its own volume of another value": {spec: one("") + "\nvolumes: [{name: solepod-declare, downwardAPI: {items: [{path: x, fieldRef: {fieldPath: metadata.name}}]}}]", problem: "another volume"},
		"Windows":                         {spec: one("") + "\nos: {name: windows}", problem: "Windows"},
		"Windows, by node":                {spec: one("") + "\nnodeSelector: {kubernetes.io/os: windows}", problem: "Windows"},
		"no room":                         {spec: one(""), annotations: "{a: " + strings.Repeat("x", maxAnnotations-100) + "}", problem: "but the maximum is 262144"},
		"one of two cannot": {
			spec:   "containers: [{name: x, image: airflow, volumeMounts: [{name: p, mountPath: /opt/airflow}]}, {name: second, image: airflow}]",
			mounts: "1=/opt/airflow/plugins" + inHome, problem: "container x: volume p",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.annotations == "" {
				tc.annotations = "{}"
			}
			injection, problems := Plan(podOf(t, tc.spec, tc.annotations), "airflow-environment", "alpha")
			var got []string
			if injection != nil {
				for _, i := range slices.Sorted(maps.Keys(injection.Mounts)) {
					got = append(got, fmt.Sprintf("%d=%s", i, injection.Mounts[i][0].MountPath))
					if n := len(injection.Mounts[i]); n > 1 {
						got = append(got, fmt.Sprintf("(%d files)", n))
					}
				}
			}
			if got := strings.Join(got, " "); got != tc.mounts {
				t.Errorf("mounts %s, want %s; problems: %q", got, tc.mounts, problems)
			}
			if tc.problem == "" && len(problems) > 0 || !strings.Contains(strings.Join(problems, "; "), tc.problem) {
				t.Errorf("problems: %q, want %q", problems, tc.problem)
			}
		})
	}
}

// injected returns a pod as the API server has it after the patches of Plan.
func injected(t *testing.T, raw []byte) (after []byte) {
	t.Helper()
	pod, err := Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	injection, problems := Plan(pod, "airflow-environment", "alpha")
	if injection == nil {
		t.Fatal(problems)
	}
	text, err := json.Marshal(injection.Patches(pod))
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		t.Fatal(err)
	}
	after, err = patch.Apply(raw)
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return after
}

// The API server may call the hook a second time, with what it has added and with
// what another webhook has added since.
func TestPlanAgain(t *testing.T) {
	const late = `{"name":"late","image":"airflow"}`
	const lateElsewhere = `{"name":"late","image":"airflow","volumeMounts":[{"name":"p","mountPath":"/opt/airflow/plugins"}]}`
	for name, tc := range map[string]struct {
		first        string // container
		more         string // container
		environment  string
		want, reason string // paths of the patches, and the problem
	}{
		"the same":                           {first: late},
		"the same, others":                   {first: lateElsewhere},
		"a late container":                   {first: late, more: late, want: "/spec/containers/1/volumeMounts"},
		"a late container beside more files": {first: lateElsewhere, more: late, want: "/spec/containers/1/volumeMounts"},
		"a late container with more files":   {first: late, more: lateElsewhere, reason: "volume solepod-declare of the pod has 1 of 3 files"},
		"of another environment":             {first: late, environment: "beta", want: "/metadata/annotations/solepod.io~1declare.py"},
	} {
		t.Run(name, func(t *testing.T) {
			after := injected(t, []byte(`{"metadata":{},"spec":{"containers":[`+tc.first+`]}}`))
			if tc.more != "" {
				patch, err := jsonpatch.DecodePatch([]byte(`[{"op":"add","path":"/spec/containers/-","value":` + tc.more + `}]`))
				if err == nil {
					after, err = patch.Apply(after)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			pod, err := Decode(after)
			if err != nil {
				t.Fatal(err)
			}
			environment := "alpha"
			if tc.environment != "" {
				environment = tc.environment
			}
			again, problems := Plan(pod, "airflow-environment", environment)
			var got []string
			if again != nil {
				for _, p := range again.Patches(pod) {
					got = append(got, p.Path)
				}
			}
			if strings.Join(got, " ") != tc.want || strings.Join(problems, " ") != tc.reason {
				t.Errorf("%q, problems %q", got, problems)
			}
		})
	}
}

// The patches add to what a pod has, and to what it lacks.
func TestPatches(t *testing.T) {
	const mount = `{"mountPath":"/opt/airflow/plugins/solepod_declare.py","name":"solepod-declare","readOnly":true,"subPath":"solepod_declare.py"}`
	const volume = `{"downwardAPI":{"items":[{"fieldRef":{"fieldPath":"metadata.annotations['solepod.io/declare.py']"},"path":"solepod_declare.py"}]},"name":"solepod-declare"}`
	for name, tc := range map[string]struct{ pod, volumes, mounts, annotations string }{
		"nothing": {`{"metadata":{},"spec":{"containers":[{"image":"airflow"}]}}`, "[" + volume + "]", "[" + mount + "]", "solepod.io/declare.py"},
		"everything": {
			`{"metadata":{"annotations":{"a":"b"}},"spec":{"volumes":[{"name":"v"}],"containers":[{"image":"airflow","volumeMounts":[{"name":"v","mountPath":"/v"}]}]}}`,
			`[{"name":"v"},` + volume + `]`, `[{"mountPath":"/v","name":"v"},` + mount + `]`, "a solepod.io/declare.py",
		},
		"the volume": {`{"metadata":{},"spec":{"volumes":[` + volume + `],"containers":[{"image":"airflow"}]}}`, "[" + volume + "]", "[" + mount + "]", "solepod.io/declare.py"},
	} {
		t.Run(name, func(t *testing.T) {
			patched := injected(t, []byte(tc.pod))
			var got struct {
				Metadata struct{ Annotations map[string]string }
				Spec     struct {
					Volumes    any
					Containers []struct{ VolumeMounts any }
				}
			}
			if err := json.Unmarshal(patched, &got); err != nil {
				t.Fatal(err)
			}
			encoded := func(v any) string {
				text, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				return string(text)
			}
			keys := strings.Join(slices.Sorted(maps.Keys(got.Metadata.Annotations)), " ")
			if diff := cmp.Diff([]string{tc.volumes, tc.mounts, tc.annotations}, []string{encoded(got.Spec.Volumes), encoded(got.Spec.Containers[0].VolumeMounts), keys}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSource(t *testing.T) {
	source := Source("team.example.org/env", "alpha-1")
	for _, want := range []string{"\nLABEL = \"team.example.org/env\"\n", "\nENVIRONMENT = \"alpha-1\"\n"} {
		if strings.Count(source, want) != 1 {
			t.Errorf("want one %q in\n%s", want, source)
		}
	}
	if strings.Contains(source, "environ.get") {
		t.Error("the environment is read from a variable as well")
	}
	if len(source) > 8<<10 {
		t.Errorf("%d bytes", len(source))
	}
}

func TestDecodeIsBounded(t *testing.T) {
	for _, list := range []string{
		`{"spec":{"containers":[%s]}}`, `{"spec":{"volumes":[%s]}}`, `{"spec":{"containers":[{"env":[%s]}]}}`, `{"spec":{"containers":[{"volumeMounts":[%s]}]}}`,
	} {
		for n, fails := range map[int]bool{maxItems: false, maxItems + 1: true} {
			items := strings.TrimSuffix(strings.Repeat("{},", n), ",")
			if _, err := Decode([]byte(fmt.Sprintf(list, items))); (err != nil) != fails {
				t.Errorf("%s of %d: %v", list, n, err)
			}
		}
	}
	if p, err := Decode([]byte(`{"spec":{"containers":null}}`)); err != nil || p.Spec.Containers != nil {
		t.Errorf("%v %+v", err, p)
	}
}
