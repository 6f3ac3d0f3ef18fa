package declare

import (
	"encoding/json"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

// FuzzPlan plans for pods that Airflow's charts do not render. The patches only
// add, the API server can apply them, and a second plan adds nothing.
func FuzzPlan(f *testing.F) {
	for _, pod := range []string{
		`{}`, `null`, `[]`, `{"metadata":{"annotations":null},"spec":{"containers":null}}`,
		`{"metadata":{},"spec":{"containers":[{"name":"x","image":"airflow"}]}}`,
		`{"metadata":{},"spec":{"containers":[{"name":"x","image":"airflow","volumeMounts":[{"name":"p","mountPath":"/opt/airflow/plugins"}]},{"image":"airflow"}]}}`,
		`{"metadata":{"annotations":{"solepod.io/declare.py":"import os"}},"spec":{"volumes":[],"containers":[{"name":"x","image":"apache/airflow:2","volumeMounts":[]}]}}`,
		`{"metadata":{"annotations":{"solepod.io/plugins-folder":"/a/../b"}},"spec":{"volumes":null,"containers":[{"image":"airflow","env":[{"name":"AIRFLOW_HOME"}]},{"args":["airflow"],"env":null}]}}`,
		`{"metadata":{},"spec":{"containers":[{"name":"x","args":["bash","-c","exec \\\nairflow worker"],"env":[{"name":"AIRFLOW_HOME","value":"$(X)"}],"volumeMounts":[{"name":"l","mountPath":"logs"},{"name":"m","mountPath":"//opt/airflow/logs/x"}]}]}}`,
	} {
		f.Add([]byte(pod), "airflow-environment", "alpha")
	}
	f.Fuzz(func(t *testing.T, raw []byte, label, environment string) {
		pod, err := Decode(raw)
		if err != nil {
			t.Skip("not a pod")
		}
		injection, problems := Plan(pod, label, environment)
		for _, problem := range problems {
			if problem == "" {
				t.Error("an empty problem")
			}
		}
		if injection == nil {
			return
		}
		patches := injection.Patches(pod)
		for _, p := range patches {
			if p.Operation != "add" {
				t.Errorf("%+v", p)
			}
		}
		text, err := json.Marshal(patches)
		if err != nil {
			t.Fatal(err)
		}
		patch, err := jsonpatch.DecodePatch(text)
		if err != nil {
			t.Fatal(err)
		}
		patched, err := patch.Apply(raw)
		if err != nil {
			t.Skip("the metadata, the spec or a list is null, or a name is given twice: the API server has neither")
		}
		after, err := Decode(patched)
		if err != nil {
			t.Fatalf("%v in\n%s", err, patched)
		}
		if again, _ := Plan(after, label, environment); again != nil {
			t.Errorf("again %+v after\n%s", again, patched)
		}
	})
}
