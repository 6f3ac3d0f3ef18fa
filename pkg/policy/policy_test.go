package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/fixture"
)

const key = taskpod.DefaultEnvironmentLabel

// The incident's clock: production submits its pod 77 s after alpha did.
var (
	alphaCreated = time.Date(2023, 3, 8, 9, 13, 29, 0, time.UTC)
	now          = alphaCreated.Add(77 * time.Second)
)

func defaults() Settings {
	return Settings{EnvironmentLabel: key}
}

// pod reads a pod of the incident from a line of package fixture. The default
// is a first try in phase Running.
func pod(line string) taskpod.Pod {
	object := fixture.Pod("data-jobs", line)
	object.CreationTimestamp = metav1.NewTime(alphaCreated)
	phase := object.Status.Phase
	if phase == "" {
		phase = corev1.PodRunning
	}
	return taskpod.FromMeta(object, phase)
}

// requester is its environment, "guess:alpha" for a guess, "alpha,beta" for an
// ambiguous one; with "bob/alpha", bob is its name.
func submit(line, requester string) Submission {
	p := pod(line)
	p.Phase, p.Created = "", time.Time{}
	return Submission{
		Pod:       p,
		Requester: requesterOf(requester),
		Now:       now,
	}
}

func requesterOf(text string) Requester {
	r := Requester{Username: "system:serviceaccount:airflow-production:airflow"}
	if name, rest, named := strings.Cut(text, "/"); named {
		r.Username, text = name, rest
	}
	r.Environment, r.Guessed = strings.CutPrefix(text, "guess:")
	if names := strings.Split(text, ","); len(names) > 1 {
		r.Environment, r.Ambiguous = "", names
	}
	return r
}

// summary is a Decision in a word or two.
func summary(d Decision) string {
	switch {
	case !d.Allowed:
		return fmt.Sprintf("%d %s", d.Code, d.Reason)
	case len(d.Supersede) > 0:
		names := []string{}
		for _, p := range d.Supersede {
			names = append(names, p.Name)
		}
		return "supersede " + strings.Join(names, ",")
	}
	return "admit"
}

// TestTable is the whole decision table on the creation of a task pod: each
// pair of environments, each order of tries, each state of the existing pod
// and each setting.
func TestTable(t *testing.T) {
	// What the two pods are to one another, by the words for their environments.
	relations := map[string]map[string]string{ // submission → existing → relation
		"":       {"": "same", "alpha!": "other", "alpha~": "other", "alpha?": "other", "prod!": "other", "prod~": "other", "prod?": "other"},
		"alpha!": {"": "other", "alpha!": "same", "alpha~": "same", "alpha?": "same", "prod!": "declared", "prod~": "other", "prod?": "other"},
		"alpha~": {"": "other", "alpha!": "same", "alpha~": "same", "alpha?": "same", "prod!": "other", "prod~": "other", "prod?": "other"},
		"alpha?": {"": "other", "alpha!": "same", "alpha~": "same", "alpha?": "same", "prod!": "other", "prod~": "other", "prod?": "other"},
	}
	const (
		duplicate = "403 DuplicateEnvironment"
		leftover  = "409 LeftoverEnvironment"
		inFlight  = "409 InFlight"
		sameTry   = "403 DuplicateTry"
	)
	type states struct{ live, finished, inFlight string }
	table := map[string]states{ // relation, or for "same": same/newer/SETTING
		"declared":             {"admit", "admit", "admit"},
		"other":                {duplicate, leftover, inFlight},
		"same/newer/Allow":     {"admit", "admit", "admit"},
		"same/newer/Supersede": {"supersede x", "supersede x", inFlight},
		"same/equal/Supersede": {"supersede x", "admit", inFlight}, // x is older than a minute
		"same/other":           {sameTry, "admit", inFlight},
	}
	rows := 0
	for n, existing := range relations {
		for x, relation := range existing {
			for _, tries := range []string{"try_number=1", "try_number=2", "try_number=3", "try_number-", "try_number=two"} {
				for _, supersede := range []bool{false, true} {
					row := relation
					if row == "same" {
						switch {
						case tries == "try_number=2" && supersede:
							row = "same/equal/Supersede"
						case tries != "try_number=3":
							row = "same/other"
						case supersede:
							row = "same/newer/Supersede"
						default:
							row = "same/newer/Allow"
						}
					}
					want := table[row]
					s := defaults()
					s.SupersedeRetries = supersede
					for state, outcome := range map[string]string{
						"Pending": want.live, "Running": want.live, "Unknown": want.live,
						"Succeeded": want.finished, "Failed": want.finished, "Running deleting": want.finished,
						"in flight": want.inFlight,
					} {
						line := "x try_number=2 " + x
						if state != "in flight" {
							line += " " + state
						}
						d := Decide(submit("n "+tries+" "+n, ""),
							[]Existing{{Pod: pod(line), InFlight: state == "in flight"}}, s)
						if got := summary(d); got != outcome {
							t.Errorf("%q with %q (%s), supersede %v: %s, want %s", n+" "+tries, x, state, supersede, got, outcome)
						}
						rows++
					}
				}
			}
		}
	}
	if rows != 4*7*5*2*7 {
		t.Errorf("%d rows", rows)
	}
}

func TestSubmissionAlone(t *testing.T) {
	require := defaults()
	require.RequireDeclared = true
	tests := map[string]struct {
		pod, requester string
		settings       Settings
		want           string
	}{
		"no requester known, nothing declared":    {"n", "", defaults(), "admit"},
		"no requester known, declared":            {"n alpha!", "", defaults(), "admit"},
		"no requester known, required":            {"n", "", require, "admit"},
		"known, not stamped":                      {"n", "alpha", defaults(), "admit"},
		"known, stamped":                          {"n alpha~", "alpha", defaults(), "admit"},
		"known, declared":                         {"n alpha!", "alpha", defaults(), "admit"},
		"known, declares another":                 {"n alpha!", "production", defaults(), "403 EnvironmentMismatch"},
		"known, carries another one's stamp":      {"n alpha~", "production", defaults(), "403 EnvironmentMismatch"},
		"known, declares an empty one":            {"n airflow-environment=", "production", defaults(), "403 EnvironmentMismatch"},
		"guessed, declares another":               {"n alpha!", "guess:production", defaults(), "admit"},
		"guessed, labelled with another":          {"n alpha?", "guess:production", defaults(), "admit"},
		"guessed, stamped":                        {"n production~", "guess:production", defaults(), "admit"},
		"guessed, declares an empty one":          {"n airflow-environment=", "guess:production", defaults(), "403 EnvironmentMismatch"},
		"guessed, required, declares another":     {"n alpha!", "guess:production", require, "admit"},
		"guessed, required, labelled":             {"n alpha?", "guess:production", require, "403 EnvironmentNotDeclared"},
		"ambiguous":                               {"n", "alpha,production", defaults(), "403 EnvironmentAmbiguous"},
		"ambiguous, declares one of them":         {"n alpha!", "alpha,production", defaults(), "403 EnvironmentAmbiguous"},
		"required, declared":                      {"n alpha!", "alpha", require, "admit"},
		"required, not declared":                  {"n", "alpha", require, "403 EnvironmentNotDeclared"},
		"required, stamped":                       {"n alpha~", "alpha", require, "403 EnvironmentNotDeclared"},
		"required, declares another":              {"n alpha!", "production", require, "403 EnvironmentMismatch"},
		"the pod of a Job is not guarded":         {"n alpha! owned", "production", require, "admit"},
		"a mirror pod is not guarded":             {"n alpha! mirror", "production", require, "admit"},
		"no task pod: no run":                     {"n alpha! run_id-", "production", require, "admit"},
		"no task pod: a KubernetesExecutor's pod": {"n alpha! airflow-worker=1", "production", require, "admit"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := summary(Decide(submit(tc.pod, tc.requester), nil, tc.settings)); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestWhatIsNotConsidered(t *testing.T) {
	for name, x := range map[string]string{
		"another task":                 "x task_id=other",
		"another DAG":                  "x dag_id=other",
		"another run":                  "x run_id=other",
		"another map index":            "x map_index=1",
		"the pod of a Job":             "x owned",
		"a mirror pod":                 "x mirror",
		"Airflow is done with it":      "x already_checked=True",
		"its own name":                 "n",
		"a KubernetesExecutor's pod":   "x airflow-worker=1",
		"not a KubernetesPodOperator":  "x kubernetes_pod_operator-",
		"the same date, older release": "x run_id- execution_date=scheduled__2023-03-08T0130000000-77fa57adf",
	} {
		t.Run(name, func(t *testing.T) {
			d := Decide(submit("n map_index=0", ""), []Existing{{Pod: pod(x + map[bool]string{true: " map_index=0"}[!strings.Contains(x, "map_index")])}}, defaults())
			if got := summary(d); got != "admit" {
				t.Error(got)
			}
		})
	}
	other := pod("x")
	other.Namespace = "elsewhere"
	if got := summary(Decide(submit("n", ""), []Existing{{Pod: other}}, defaults())); got != "admit" {
		t.Errorf("a pod in another namespace: %s", got)
	}
	// Airflow patches it to True; any other value leaves the pod selectable.
	if got := summary(Decide(submit("n", ""), []Existing{{Pod: pod("x already_checked=true")}}, defaults())); got != "403 DuplicateTry" {
		t.Errorf("already_checked=true: %s", got)
	}
}

// An unmapped task's selector has no map_index in it and matches every mapped
// pod of the task: environments that run different versions of one DAG collide.
func TestMappedAndUnmappedCollide(t *testing.T) {
	for n, x := range map[string]string{"n alpha~": "x prod~ map_index=4", "n map_index=4 alpha~": "x prod~"} {
		if got := summary(Decide(submit(n, ""), []Existing{{Pod: pod(x)}}, defaults())); got != "403 DuplicateEnvironment" {
			t.Errorf("%s beside %s: %s", n, x, got)
		}
	}
}

// The message is about what does not pass by waiting, then about the oldest pod.
func TestWhichPodIsNamed(t *testing.T) {
	young := pod("young prod~")
	young.Created = alphaCreated.Add(time.Minute)
	existing := []Existing{
		{Pod: pod("left prod~ Succeeded")},
		{Pod: pod("flying prod~"), InFlight: true},
		{Pod: pod("apart beta!")},
		{Pod: young},
		{Pod: pod("old prod~")},
		{Pod: pod("older-name prod~")},
		{Pod: pod("retry alpha!")},
	}
	for _, want := range []string{"old 403 DuplicateEnvironment", "older-name 403 DuplicateEnvironment", "young 403 DuplicateEnvironment",
		"retry 403 DuplicateTry", "flying 409 InFlight", "left 409 LeftoverEnvironment"} {
		d := Decide(submit("n alpha!", "alpha"), existing, defaults())
		if d.Existing == nil {
			t.Fatalf("want %s: no pod named: %s", want, summary(d))
		}
		if got := d.Existing.Name + " " + summary(d); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		for i, x := range existing {
			if x.Name == d.Existing.Name {
				existing = append(existing[:i:i], existing[i+1:]...)
				break
			}
		}
	}
	// A denial supersedes nothing.
	s := defaults()
	s.SupersedeRetries = true
	d := Decide(submit("n try_number=2", ""), []Existing{{Pod: pod("x")}, {Pod: pod("y prod!")}}, s)
	if diff := cmp.Diff("403 DuplicateEnvironment 0", fmt.Sprint(summary(d), " ", len(d.Supersede))); diff != "" {
		t.Error(diff)
	}
}

// A label counts as declared only with evidence that it is in Airflow's selector.
func TestEvidence(t *testing.T) {
	for pods, want := range map[[2]string]string{
		{"n alpha!", "x prod!"}:                                "admit",
		{"n alpha?", "x prod!"}:                                "403 DuplicateEnvironment",
		{"n alpha!", "x prod?"}:                                "403 DuplicateEnvironment",
		{"n alpha? solepod.io/declared=v2", "x prod!"}:         "403 DuplicateEnvironment",
		{"n alpha? solepod.io/declared=", "x prod!"}:           "403 DuplicateEnvironment",
		{"n alpha~ solepod.io/declared=v1", "x prod!"}:         "403 DuplicateEnvironment",
		{"n solepod.io/declared=v1", "x prod!"}:                "403 DuplicateEnvironment",
		{"n alpha? solepod.io/declared=v1", "x prod!"}:         "admit",
		{"n alpha! try_number=2", "x alpha~"}:                  "admit",
		{"n alpha! try_number=2", "x alpha? try_number=1"}:     "admit",
		{"n alpha!", "x alpha?"}:                               "403 DuplicateTry",
		{"n alpha! airflow-environment=", "x prod! Succeeded"}: "409 LeftoverEnvironment",
	} {
		if got := summary(Decide(submit(pods[0], ""), []Existing{{Pod: pod(pods[1])}}, defaults())); got != want {
			t.Errorf("%s with %s: %s, want %s", pods[0], pods[1], got, want)
		}
	}
}

// A pod of the same try is superseded once it is old enough not to be a second worker's.
func TestEqualTry(t *testing.T) {
	s := defaults()
	s.SupersedeRetries = true
	for ago, want := range map[time.Duration]string{59 * time.Second: "403 DuplicateTry", time.Minute: "supersede x"} {
		x := pod("x alpha~")
		x.Created = now.Add(-ago)
		if got := summary(Decide(submit("n alpha~", "alpha"), []Existing{{Pod: x}}, s)); got != want {
			t.Errorf("%s: %s, want %s", ago, got, want)
		}
	}
}

// No pod can be created next to one of the same name.
func TestNameTaken(t *testing.T) {
	for name, tc := range map[string]struct {
		n, x              string
		generates, flying bool
		want              string
	}{
		"its own":                               {"n alpha~", "n alpha~", false, false, "409 NameTaken"},
		"its own, ended":                        {"n alpha~ try_number=2", "n alpha~ Failed", false, false, "409 NameTaken"},
		"of another environment":                {"n alpha~", "n prod~", false, false, "403 DuplicateEnvironment"},
		"of another environment, both declared": {"n alpha!", "n prod!", false, false, "403 DuplicateEnvironment"},
		"of another environment, ended":         {"n alpha!", "n prod! Failed", false, false, "409 LeftoverEnvironment"},
		"of another environment, checked":       {"n alpha!", "n prod! already_checked=True", false, false, "409 NameTaken"},
		"of another environment, generated":     {"n alpha!", "n prod!", true, false, "409 NameTaken"},
		"of another task":                       {"n alpha~", "n prod~ task_id=other", false, false, "409 NameTaken"},
		"of another program":                    {"n alpha~", "n kubernetes_pod_operator-", false, false, "409 NameTaken"},
		"in flight":                             {"n alpha~", "n alpha~", false, true, "admit"},
	} {
		t.Run(name, func(t *testing.T) {
			n := submit(tc.n, "")
			n.Pod.UID, n.GeneratesName = "n1", tc.generates
			x := Existing{Pod: pod(tc.x), InFlight: tc.flying}
			x.UID = "n0"
			if got := summary(Decide(n, []Existing{x}, defaults())); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
			x.UID = "n1" // itself: an update makes it a task pod
			if got := summary(Decide(n, []Existing{x}, defaults())); got != "admit" {
				t.Errorf("beside itself: %s", got)
			}
		})
	}
}

// An Airflow is the same with any label, now and before. Two declarations differ.
func TestCreator(t *testing.T) {
	for name, tc := range map[string]struct{ n, by, x, createdBy, want string }{
		"renamed, the same user":           {"n beta~ try_number=2", "bob/beta", "x alpha~", "bob/beta", "admit"},
		"renamed, the same try":            {"n beta~", "bob/beta", "x alpha~", "bob/beta", "403 DuplicateTry"},
		"renamed, its finished pod":        {"n beta~", "bob/beta", "x alpha~ Succeeded", "bob/beta", "admit"},
		"labelled since":                   {"n beta~ try_number=2", "bob/beta", "x", "bob/beta", "admit"},
		"no longer labelled":               {"n try_number=2", "bob/", "x alpha~", "bob/", "admit"},
		"renamed, another account":         {"n beta~ try_number=2", "bob/beta", "x alpha~", "eve/beta", "admit"},
		"renamed, an account of another":   {"n beta~ try_number=2", "bob/beta", "x alpha~", "eve/alpha", "403 DuplicateEnvironment"},
		"two accounts that only guess":     {"n beta~ try_number=2", "bob/guess:beta", "x alpha~", "eve/guess:beta", "403 DuplicateEnvironment"},
		"two accounts without environment": {"n try_number=2", "bob/", "x alpha~", "eve/", "403 DuplicateEnvironment"},
		"unknown":                          {"n beta~ try_number=2", "bob/beta", "x alpha~", "/", "403 DuplicateEnvironment"},
		"one user, both declare":           {"n beta!", "bob/", "x alpha!", "bob/", "admit"},
		"one user, the new one declares":   {"n beta! try_number=2", "bob/", "x alpha~", "bob/", "403 DuplicateEnvironment"},
		"one user, the old one declares":   {"n beta~ try_number=2", "bob/", "x alpha!", "bob/", "403 DuplicateEnvironment"},
	} {
		t.Run(name, func(t *testing.T) {
			existing := Existing{Pod: pod(tc.x), Creator: requesterOf(tc.createdBy)}
			if got := summary(Decide(submit(tc.n, tc.by), []Existing{existing}, defaults())); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestAccess(t *testing.T) {
	tests := map[string]struct {
		operation       Operation
		requester       string
		before, updated string
		want            string
	}{
		"in both, the pod of one":        {operationDelete, "alpha,production", "x alpha!", "", "admit"},
		"in both, the pod of a third":    {operationDelete, "alpha,production", "x beta!", "", "403 ForeignEnvironment"},
		"renamed, its own pod":           {operationDelete, "creator/beta", "x alpha~", "", "admit"},
		"renamed, its own pod, marked":   {operationUpdate, "creator/beta", "x alpha~", "x alpha~ already_checked=True", "admit"},
		"renamed, its own pod, changed":  {operationUpdate, "creator/beta", "x alpha~", "x beta~", "403 IdentityChanged"},
		"renamed, a pod of another":      {operationDelete, "bob/beta", "x alpha~", "", "403 ForeignEnvironment"},
		"own update":                     {operationUpdate, "alpha", "x alpha!", "x alpha! try_number=2", "admit"},
		"own delete":                     {operationDelete, "alpha", "x alpha!", "", "admit"},
		"own exec":                       {operationConnect, "alpha", "x alpha~", "", "admit"},
		"foreign update":                 {operationUpdate, "production", "x alpha!", "x alpha! already_checked=True", "403 ForeignEnvironment"},
		"foreign delete":                 {operationDelete, "production", "x alpha!", "", "403 ForeignEnvironment"},
		"foreign clean-up":               {operationDelete, "production", "x alpha! Succeeded", "", "403 ForeignCleanup"},
		"a second foreign delete":        {operationDelete, "production", "x alpha! deleting", "", "403 ForeignCleanup"},
		"foreign update of a finished":   {operationUpdate, "production", "x alpha! Succeeded", "x alpha! Succeeded already_checked=True", "403 ForeignEnvironment"},
		"foreign exec":                   {operationConnect, "production", "x alpha~", "", "403 ForeignEnvironment"},
		"a kubelet's delete":             {operationDelete, "", "x alpha!", "", "admit"},
		"an administrator's relabelling": {operationUpdate, "", "x alpha!", "x prod!", "admit"},
		"pod of no environment":          {operationDelete, "alpha", "x", "", "admit"},
		"no task pod":                    {operationDelete, "production", "x alpha! run_id-", "", "admit"},
		"marked as checked":              {operationUpdate, "alpha", "x alpha!", "x alpha! already_checked=True", "admit"},
		"checked taken back":             {operationUpdate, "alpha", "x alpha! already_checked=True", "x alpha!", "403 IdentityChanged"},
		"another DAG":                    {operationUpdate, "alpha", "x alpha!", "x alpha! dag_id=other", "403 IdentityChanged"},
		"another task":                   {operationUpdate, "alpha", "x alpha!", "x alpha! task_id=other", "403 IdentityChanged"},
		"another run":                    {operationUpdate, "alpha", "x alpha!", "x alpha! run_id=other", "403 IdentityChanged"},
		"a map index":                    {operationUpdate, "alpha", "x alpha!", "x alpha! map_index=0", "403 IdentityChanged"},
		"another environment":            {operationUpdate, "alpha", "x alpha!", "x prod!", "403 IdentityChanged"},
		"an environment where none was":  {operationUpdate, "alpha", "x", "x alpha!", "403 IdentityChanged"},
		"a label passed off as declared": {operationUpdate, "alpha", "x alpha?", "x alpha!", "403 IdentityChanged"},
		"evidence taken away":            {operationUpdate, "alpha", "x alpha!", "x alpha?", "403 IdentityChanged"},
		"a stamp passed off as declared": {operationUpdate, "alpha", "x alpha~", "x alpha!", "403 IdentityChanged"},
		"no task pod any more":           {operationUpdate, "alpha", "x alpha!", "x alpha! kubernetes_pod_operator-", "403 IdentityChanged"},
		"hidden as a worker":             {operationUpdate, "alpha", "x alpha!", "x alpha! airflow-worker=1", "403 IdentityChanged"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			a := Access{
				Operation: tc.operation, Pod: pod(tc.before), Now: now,
				Requester: requesterOf(tc.requester), Creator: Requester{Username: "creator"},
			}
			if tc.updated != "" {
				a.Updated = pod(tc.updated)
			}
			if got := summary(DecideAccess(a, defaults())); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestBecomesTaskPod(t *testing.T) {
	task, other := pod("x"), pod("x run_id-")
	for _, tc := range []struct {
		before, after taskpod.Pod
		want          bool
	}{{other, task, true}, {task, task, false}, {task, other, false}, {other, other, false}} {
		if got := BecomesTaskPod(tc.before, tc.after); got != tc.want {
			t.Errorf("%v → %v: %v", tc.before.Labels, tc.after.Labels, got)
		}
	}
}
