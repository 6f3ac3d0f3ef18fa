package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/solepod/solepod/pkg/taskpod"
)

const asked = "Requested by system:serviceaccount:airflow-production:airflow, environment production. "

func TestMessages(t *testing.T) {
	const task = "Task: foo-bar-task-id of DAG foo-bar-dag-id, run scheduled__2023-03-08T0130000000-77fa57adf, try 1. "
	require := defaults()
	require.RequireDeclared = true
	access := func(op Operation, before, updated, requester string) Decision {
		return DecideAccess(Access{Operation: op, Pod: pod(before), Updated: pod(updated), Now: now,
			Requester: Requester{Username: "system:serviceaccount:airflow-production:airflow", Environment: requester}}, defaults())
	}
	create := func(n, requester string, s Settings, existing ...Existing) Decision {
		return Decide(submit(n, requester), existing, s)
	}
	tests := map[string]struct {
		decision Decision
		want     string
	}{
		"the incident, stamped": {
			create("n production~", "production", defaults(), Existing{Pod: pod("export-action-log-4devg7t1 alpha~")}),
			"solepod: another Airflow environment is already running this task. " +
				"Existing pod: data-jobs/export-action-log-4devg7t1, environment alpha (stamped, not declared), phase Running, try 1, age 77s. " +
				task + asked +
				"Pause the DAG in one of the two environments, or let both declare their environment: " +
				"label the namespace of each Airflow with solepod.io/declare=enabled and restart Airflow [DuplicateEnvironment]",
		},
		"labelled by a template, mapped": {
			create("n map_index=3 production!", "production", defaults(), Existing{Pod: pod("x alpha? map_index=3")}),
			"solepod: another Airflow environment is already running this task. " +
				"Existing pod: data-jobs/x, environment alpha (labelled, not declared), phase Running, try 1, age 77s. " +
				"Task: foo-bar-task-id of DAG foo-bar-dag-id, run scheduled__2023-03-08T0130000000-77fa57adf, map index 3, try 1. " + asked +
				"Pause the DAG in one of the two environments, or let both declare their environment: " +
				"label the namespace of each Airflow with solepod.io/declare=enabled and restart Airflow [DuplicateEnvironment]",
		},
		"two unknown environments": {
			create("n", "", defaults(), Existing{Pod: pod("x Pending try_number-")}),
			"solepod: this task already has a live pod. " +
				"Existing pod: data-jobs/x, environment unknown, phase Pending, try unknown, age 77s. " + task +
				"Requested by system:serviceaccount:airflow-production:airflow, environment unknown. " +
				"Wait until that pod has ended, or delete it if no Airflow task is waiting for it; " +
				"if it belongs to another Airflow, label the namespace of each Airflow with airflow-environment [DuplicateTry]",
		},
		"its own pod": {
			create("n production~", "production", defaults(), Existing{Pod: pod("x production~")}),
			"solepod: this task already has a live pod. " +
				"Existing pod: data-jobs/x, environment production (stamped, not declared), phase Running, try 1, age 77s. " + task + asked +
				"Wait until that pod has ended, or delete it if no Airflow task is waiting for it, " +
				"for example because a deferred task was cleared: kubectl delete pod --namespace data-jobs x [DuplicateTry]",
		},
		"guessed, perhaps of another Airflow": {
			create("n production~", "guess:production", defaults(), Existing{Pod: pod("x production~")}),
			"solepod: this task already has a live pod. " +
				"Existing pod: data-jobs/x, environment production (stamped, not declared), phase Running, try 1, age 77s. " + task +
				"Requested by system:serviceaccount:airflow-production:airflow, environment production (a guess: the label of the namespace of the pod). " +
				"Wait until that pod has ended. If it belongs to another Airflow, label the namespace of each Airflow with its own airflow-environment " +
				"and with solepod.io/declare=enabled, and restart Airflow [DuplicateTry]",
		},
		"guessed, not declared": {
			create("n production~", "guess:production", require),
			"solepod: the pod does not declare its environment, which task pods in this namespace must, because it has the label airflow-environment=production. " + task +
				"Requested by system:serviceaccount:airflow-production:airflow, environment production (a guess: the label of the namespace of the pod). " +
				"Label the namespace of its Airflow with its own airflow-environment and with solepod.io/declare=enabled, and restart Airflow [EnvironmentNotDeclared]",
		},
		"guessed, an empty label": {
			create("n airflow-environment=", "guess:production", defaults()),
			"solepod: the label airflow-environment of the pod is empty. " + task +
				"Requested by system:serviceaccount:airflow-production:airflow, environment production (a guess: the label of the namespace of the pod). " +
				"Remove that label, or set it to the environment of the Airflow [EnvironmentMismatch]",
		},
		"ambiguous": {
			create("n", "alpha,production", defaults()),
			"solepod: the configuration of solepod assigns the requester to several environments. " + task +
				"Requested by system:serviceaccount:airflow-production:airflow, environment alpha and production. " +
				"Let users, groups and serviceAccounts of the configuration assign it to one environment [EnvironmentAmbiguous]",
		},
		"in flight": {
			create("n production~", "production", defaults(), Existing{Pod: pod("x alpha~"), InFlight: true}),
			"solepod: another pod of this task is being created. " +
				"Existing pod: data-jobs/x, environment alpha (stamped, not declared), phase Running, try 1, age 77s. " + task + asked +
				"Try again in a few seconds; recent Airflow providers do so automatically [InFlight]",
		},
		"a leftover": {
			create("n production!", "production", defaults(), Existing{Pod: pod("x alpha~ Succeeded deleting")}),
			"solepod: a pod of another Airflow environment that is being deleted still matches this task's selector. " +
				"Existing pod: data-jobs/x, environment alpha (stamped, not declared), phase Succeeded (being deleted), try 1, age 77s. " + task + asked +
				"Label that pod already_checked=True and try again, or let both declare their environment: " +
				"label the namespace of each Airflow with solepod.io/declare=enabled and restart Airflow [LeftoverEnvironment]",
		},
		"mismatch": {
			create("n alpha!", "production", defaults()),
			"solepod: the pod carries the label airflow-environment=alpha but its requester belongs to environment production. " + task + asked +
				"Set airflow-environment to production in the labels of the operator, " +
				"or correct the label airflow-environment on the ServiceAccount or namespace of the requester and restart Airflow [EnvironmentMismatch]",
		},
		"not declared": {
			create("n production~", "production", require),
			"solepod: the pod does not declare its environment, which environment production must. " + task + asked +
				"Label the namespace of its Airflow with solepod.io/declare=enabled and restart Airflow [EnvironmentNotDeclared]",
		},
		"foreign delete": {
			access(operationDelete, "export-action-log-4devg7t1 alpha!", "x", "production"),
			"solepod: environment production may not delete a pod of environment alpha. " +
				"Pod: data-jobs/export-action-log-4devg7t1, environment alpha, phase Running, try 1, age 77s. " + task + asked +
				"If a job cleans up pods, let it select pods with the label airflow-environment=production. " +
				"If an Airflow task has found this pod by its name, use another name in each environment [ForeignEnvironment]",
		},
		"foreign delete of a stamped pod": {
			access(operationDelete, "x alpha~", "x", "production"),
			"solepod: environment production may not delete a pod of environment alpha. " +
				"Pod: data-jobs/x, environment alpha (stamped, not declared), phase Running, try 1, age 77s. " + task + asked +
				"If an Airflow task has found this pod: label the namespace of each Airflow with solepod.io/declare=enabled and restart Airflow, then clear the task. " +
				"If a job cleans up pods, let it select pods with the label airflow-environment=production [ForeignEnvironment]",
		},
		"foreign clean-up": {
			access(operationDelete, "x alpha! Failed", "x", "production"),
			"solepod: environment production may not delete a finished pod of environment alpha. " +
				"Pod: data-jobs/x, environment alpha, phase Failed, try 1, age 77s. " + task + asked +
				"If a job cleans up pods, let it select pods with the label airflow-environment=production [ForeignCleanup]",
		},
		"a leftover with a sidecar": {
			create("n production!", "production", defaults(), Existing{Pod: with(pod("x alpha~"), func(p *taskpod.Pod) {
				p.Over = &taskpod.Over{Container: "base", At: now.Add(-time.Minute), Running: []string{"istio-proxy", "b", "c", "d"}}
			})}),
			"solepod: a pod of another Airflow environment whose task has ended still matches this task's selector. " +
				"Existing pod: data-jobs/x, environment alpha (stamped, not declared), " +
				"phase Running (container base ended 60s ago and istio-proxy and b and c and 1 more runs on), try 1, age 77s. " + task + asked +
				"Delete that pod or label it already_checked=True and try again, or let both declare their environment: " +
				"label the namespace of each Airflow with solepod.io/declare=enabled and restart Airflow [LeftoverEnvironment]",
		},
		"of an environment that is gone": {
			Abandoned(submit("n production~", "production"), pod("x dev~"), defaults()),
			"solepod: a pod of an Airflow environment that no longer exists still runs this task. " +
				"Existing pod: data-jobs/x, environment dev (stamped, not declared), phase Running, try 1, age 77s. " + task + asked +
				"No namespace, no ServiceAccount and no configuration names environment dev. " +
				"If no Airflow waits for that pod, remove it: solepod reclaim --yes data-jobs/x [DuplicateEnvironment]",
		},
		"stuck in Terminating": {
			create("n production!", "production", defaults(), Existing{Pod: with(pod("x alpha~ deleting"), func(p *taskpod.Pod) {
				p.Deletion = taskpod.Deletion{Due: now.Add(-time.Hour), Finalizers: []string{"example.com/keep it"}}
			})}),
			"solepod: a pod of another Airflow environment that is being deleted still matches this task's selector. " +
				"Existing pod: data-jobs/x, environment alpha (stamped, not declared), " +
				"phase Running (being deleted, with the finalizers example.com/keep_it), try 1, age 77s. " + task + asked +
				"Label that pod already_checked=True and try again, or let both declare their environment: " +
				"label the namespace of each Airflow with solepod.io/declare=enabled and restart Airflow [LeftoverEnvironment]",
		},
		"on a lost node": {
			create("n production!", "production", defaults(), Existing{Pod: with(pod("x alpha~ deleting"), func(p *taskpod.Pod) {
				p.Deletion = taskpod.Deletion{Due: now.Add(-time.Hour), Node: "spot-7"}
			})}),
			"solepod: a pod of another Airflow environment that is being deleted still matches this task's selector. " +
				"Existing pod: data-jobs/x, environment alpha (stamped, not declared), " +
				"phase Running (being deleted, and waits for the kubelet of node spot-7), try 1, age 77s. " + task + asked +
				"Label that pod already_checked=True and try again, or let both declare their environment: " +
				"label the namespace of each Airflow with solepod.io/declare=enabled and restart Airflow [LeftoverEnvironment]",
		},
		"identity changed": {
			access(operationUpdate, "x production!", "x production! run_id=other", "production"),
			"solepod: this update would change label run_id, and with it which Airflow task finds the pod. " +
				"Pod: data-jobs/x, environment production, phase Running, try 1, age 77s. " + task + asked +
				"Do not change it; to run another task, create another pod [IdentityChanged]",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, tc.decision.Message); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A discreet message contains nothing about the other environment.
func TestDiscreet(t *testing.T) {
	const task = "Task: foo-bar-task-id of DAG foo-bar-dag-id, run scheduled__2023-03-08T0130000000-77fa57adf, try 1. "
	discreet := defaults()
	discreet.Discreet = true
	production := Requester{Username: "system:serviceaccount:airflow-production:airflow", Environment: "production"}
	for name, tc := range map[string]struct {
		decision Decision
		want     string // "" for all of the message
	}{
		"live": {
			Decide(submit("n production~", "production"), []Existing{{Pod: pod("x alpha~")}}, discreet),
			"solepod: another Airflow environment is already running this task. " + task +
				"Pause the DAG in one of the two environments, or let both declare their environment [DuplicateEnvironment]",
		},
		"in flight": {
			Decide(submit("n production~", "production"), []Existing{{Pod: pod("x alpha~"), InFlight: true}}, discreet),
			"solepod: another pod of this task is being created. " + task +
				"Try again in a few seconds; recent Airflow providers do so automatically [InFlight]",
		},
		"a leftover": {
			Decide(submit("n production!", "production"), []Existing{{Pod: pod("x alpha~ Succeeded")}}, discreet),
			"solepod: a finished pod of another Airflow environment still matches this task's selector. " + task +
				"Ask the cluster administrators: the log of solepod names the pods that collide [LeftoverEnvironment]",
		},
		"unknown environments may be two": {
			Decide(submit("n", ""), []Existing{{Pod: pod("x")}}, discreet),
			"solepod: this task already has a live pod. " + task + "Ask the cluster administrators: the log of solepod names the pods that collide [DuplicateTry]",
		},
		"a foreign delete": {
			DecideAccess(Access{Operation: operationDelete, Pod: pod("x alpha~"), Requester: production, Now: now}, discreet),
			"solepod: this pod belongs to another Airflow environment. If an Airflow task has found this pod: " +
				"label the namespace of each Airflow with solepod.io/declare=enabled and restart Airflow, then clear the task. " +
				"If a job cleans up pods, let it select pods of its own environment by the label airflow-environment [ForeignEnvironment]",
		},
		"its own environment": {Decide(submit("n production~", "production"), []Existing{{Pod: pod("x production~")}}, discreet), ""},
		"no other pod":        {Decide(submit("n alpha!", "production"), nil, discreet), ""},
		"not discreet":        {Decide(submit("n production~", "production"), []Existing{{Pod: pod("x alpha~")}}, defaults()), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.want == "" {
				tc.want = tc.decision.Message
			}
			if diff := cmp.Diff(tc.want, tc.decision.PublicMessage); diff != "" || tc.want == "" {
				t.Error(diff)
			}
		})
	}
}

func with(p taskpod.Pod, change func(*taskpod.Pod)) taskpod.Pod {
	change(&p)
	return p
}

// Words from outside are shown, but can neither break the line nor spell the
// words on which KubernetesExecutor requeues a task for ever.
func TestMessagesAreSafe(t *testing.T) {
	hostile := "o'brien\"\n\r\t`exceeded quota`\\u0000é" + strings.Repeat("x", 100_000)
	n := submit("n", hostile)
	n.Requester.Username = hostile
	x := pod("x prod!")
	for label := range x.Labels {
		x.Labels[label] = n.Pod.Labels[label]
		if label != "kubernetes_pod_operator" {
			x.Labels[label], n.Pod.Labels[label] = hostile, hostile
		}
	}
	n.Pod.Labels[key] = hostile
	x.Labels[key] = hostile + "!"
	x.Name, x.Phase = hostile, "Run\nning"
	mismatched := n
	mismatched.Requester.Environment = hostile + "!"
	denied := map[Reason]bool{}
	for _, s := range []Settings{defaults(), {EnvironmentLabel: key}, {EnvironmentLabel: key, RequireDeclared: true}, {EnvironmentLabel: key, Discreet: true}} {
		for _, d := range []Decision{
			Decide(n, []Existing{{Pod: x}}, s),
			Decide(n, []Existing{{Pod: x, InFlight: true}}, s),
			Decide(mismatched, nil, s),
			DecideAccess(Access{Operation: operationDelete, Pod: x, Requester: n.Requester}, s),
		} {
			if d.Allowed {
				continue // both declared: nothing to say
			}
			denied[d.Reason] = true
			for _, message := range []string{d.Message, d.PublicMessage} {
				if message == "" || strings.ContainsAny(message, "\"'`\n\r\t\\") {
					t.Errorf("unsafe: %.300q", message)
				}
				if strings.Contains(message, "exceeded quota") {
					t.Errorf("requeued for ever: %.300q", message)
				}
			}
			if len(d.Message) > 4096 {
				t.Errorf("%d bytes", len(d.Message))
			}
		}
	}
	want := map[Reason]bool{DuplicateEnvironment: true, InFlight: true, EnvironmentMismatch: true, EnvironmentNotDeclared: true, ForeignEnvironment: true}
	if diff := cmp.Diff(want, denied); diff != "" {
		t.Error(diff)
	}
}
