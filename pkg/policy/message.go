package policy

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/solepod/solepod/pkg/taskpod"
)

// A message is one line in an Airflow task log. Its reader may not know
// solepod. It states what happened, the conflicting pod, the task, the
// requester and what to do, and ends with the reason code. It contains no quotes
// and no newlines, because Airflow prints it inside JSON inside a Python repr.
// Every value from outside solepod passes through safe.

func duplicateMessage(reason Reason, n Submission, x taskpod.Pod, s Settings) string {
	var cure string
	switch reason {
	case DuplicateEnvironment:
		cure = "Pause the DAG in one of the two environments, or " + howToSeparate
	case DuplicateTry:
		cure = "Wait until that pod has ended, or delete it if no Airflow task is waiting for it"
		if equalTry(n.Pod, x) && x.Name != "" {
			cure += fmt.Sprintf(", for example because a deferred task was cleared: kubectl delete pod --namespace %s %s", safe(x.Namespace), safe(x.Name))
		}
		switch {
		case n.Pod.Environment(s.EnvironmentLabel) == "":
			cure += fmt.Sprintf("; if it belongs to another Airflow, label the namespace of each Airflow with %s", s.EnvironmentLabel)
		case n.Requester.Guessed && !n.Pod.Declares(s.EnvironmentLabel):
			// It may belong to another Airflow with the same user.
			cure = fmt.Sprintf("Wait until that pod has ended. If it belongs to another Airflow, label the namespace of each Airflow with its own %s and with %s=enabled, and restart Airflow",
				s.EnvironmentLabel, taskpod.LabelDeclare)
		}
	case InFlight:
		cure = tryAgain
	case NameTaken:
		cure = anotherName
	case LeftoverEnvironment:
		do := "Delete that pod or label it"
		if x.Deleting {
			do = "Label that pod" // it is deleted already
		}
		cure = fmt.Sprintf("%s %s=%s and try again, or %s", do, taskpod.LabelChecked, taskpod.True, howToSeparate)
	}
	if x.Name == n.Pod.Name && x.Name != "" {
		cure = anotherName
	}
	return compose(reason, conflictOf(reason, x),
		"Existing pod: "+describePod(x, n.Now, s),
		describeTask(n.Pod),
		describeRequester(n.Requester),
		cure)
}

func abandonedMessage(n Submission, x taskpod.Pod, s Settings) string {
	return compose(DuplicateEnvironment, "a pod of an Airflow environment that no longer exists still runs this task",
		"Existing pod: "+describePod(x, n.Now, s),
		describeTask(n.Pod),
		describeRequester(n.Requester),
		fmt.Sprintf("No namespace, no ServiceAccount and no configuration names environment %s. If no Airflow waits for that pod, remove it: solepod reclaim --yes %s/%s",
			safe(x.Environment(s.EnvironmentLabel)), safe(x.Namespace), safe(x.Name)))
}

// conflictOf states the conflict of a denied submission with an existing pod.
func conflictOf(reason Reason, x taskpod.Pod) string {
	switch {
	case reason == DuplicateEnvironment:
		return "another Airflow environment is already running this task"
	case reason == InFlight:
		return "another pod of this task is being created"
	case reason == NameTaken:
		return "another pod has this name"
	case reason == LeftoverEnvironment && x.Deleting:
		return "a pod of another Airflow environment that is being deleted still matches this task's selector"
	case reason == LeftoverEnvironment && x.Over != nil:
		return "a pod of another Airflow environment whose task has ended still matches this task's selector"
	case reason == LeftoverEnvironment:
		return "a finished pod of another Airflow environment still matches this task's selector"
	default:
		return "this task already has a live pod"
	}
}

const anotherName = "The name is taken: leave random_name_suffix of the operator at True, or use another name"

const tryAgain = "Try again in a few seconds; recent Airflow providers do so automatically"

// discreetDuplicate returns duplicateMessage without the pods and requesters. It
// returns "" if the full message may be shown: messages are not discreet, or both
// pods carry the same environment.
func discreetDuplicate(reason Reason, n Submission, x taskpod.Pod, s Settings) string {
	if env := n.Pod.Environment(s.EnvironmentLabel); !s.Discreet || env != "" && env == x.Environment(s.EnvironmentLabel) {
		return ""
	}
	cure := askOperators
	switch reason {
	case InFlight:
		cure = tryAgain
	case NameTaken:
		cure = anotherName
	case DuplicateEnvironment:
		cure = "Pause the DAG in one of the two environments, or let both declare their environment"
	}
	return compose(reason, conflictOf(reason, x), describeTask(n.Pod), cure)
}

// discreetForeign returns foreignMessage without the environments, or "" if
// messages are not discreet.
func discreetForeign(reason Reason, s Settings) string {
	if !s.Discreet {
		return ""
	}
	return compose(reason, "this pod belongs to another Airflow environment",
		"If an Airflow task has found this pod: "+howToDeclare+", then clear the task. If a job cleans up pods, let it select pods of its own environment by the label "+s.EnvironmentLabel)
}

const askOperators = "Ask the cluster administrators: the log of solepod names the pods that collide"

func aloneMessage(reason Reason, n Submission, s Settings) string {
	key, env := s.EnvironmentLabel, safe(n.Requester.Environment)
	var what, cure string
	switch {
	case reason == EnvironmentAmbiguous:
		what = "the configuration of solepod assigns the requester to several environments"
		cure = "Let users, groups and serviceAccounts of the configuration assign it to one environment"
	case reason == EnvironmentMismatch && n.Requester.Guessed:
		what = fmt.Sprintf("the label %s of the pod is empty", key)
		cure = "Remove that label, or set it to the environment of the Airflow"
	case reason == EnvironmentMismatch:
		carried := cmp.Or(safe(n.Pod.Environment(key)), "(empty)")
		what = fmt.Sprintf("the pod carries the label %s=%s but its requester belongs to environment %s", key, carried, env)
		cure = fmt.Sprintf("Set %s to %s in the labels of the operator, or correct the label %s on the ServiceAccount or namespace of the requester and restart Airflow", key, env, key)
	case reason == EnvironmentNotDeclared && n.Requester.Guessed:
		what = fmt.Sprintf("the pod does not declare its environment, which task pods in this namespace must, because it has the label %s=%s", key, env)
		cure = fmt.Sprintf("Label the namespace of its Airflow with its own %s and with %s=enabled, and restart Airflow", key, taskpod.LabelDeclare)
	case reason == EnvironmentNotDeclared:
		what = fmt.Sprintf("the pod does not declare its environment, which environment %s must", env)
		cure = "Label the namespace of its Airflow with " + taskpod.LabelDeclare + "=enabled and restart Airflow"
	}
	return compose(reason, what, describeTask(n.Pod), describeRequester(n.Requester), cure)
}

func foreignMessage(reason Reason, a Access, s Settings) string {
	pod := "a pod"
	if reason == ForeignCleanup {
		pod = "a finished pod"
	}
	return compose(reason,
		fmt.Sprintf("environment %s may not %s %s of environment %s",
			environmentsOf(a.Requester), strings.ToLower(string(a.Operation)), pod, safe(a.Pod.Environment(s.EnvironmentLabel))),
		"Pod: "+describePod(a.Pod, a.Now, s),
		describeTask(a.Pod),
		describeRequester(a.Requester),
		foreignCure(a, s))
}

// foreignCure states what to do. It is not known whether the request is that of a task
// that has found the pod, or of a job that cleans up.
func foreignCure(a Access, s Settings) string {
	own := fmt.Sprintf("let it select pods with the label %s=%s", s.EnvironmentLabel, safe(a.Requester.Environment))
	if len(a.Requester.environments()) != 1 {
		own = "let it select pods of its own environments by the label " + s.EnvironmentLabel
	}
	switch {
	case a.Operation == operationDelete && a.Pod.Finished() && a.Pod.Declares(s.EnvironmentLabel):
		return "If a job cleans up pods, " + own
	case a.Pod.Declares(s.EnvironmentLabel):
		return "If a job cleans up pods, " + own + ". If an Airflow task has found this pod by its name, use another name in each environment"
	}
	return "If an Airflow task has found this pod: " + howToDeclare + ", then clear the task. If a job cleans up pods, " + own
}

func identityMessage(a Access, what string, s Settings) string {
	return compose(IdentityChanged,
		fmt.Sprintf("this update would change %s, and with it which Airflow task finds the pod", what),
		"Pod: "+describePod(a.Pod, a.Now, s),
		describeTask(a.Pod),
		describeRequester(a.Requester),
		"Do not change it; to run another task, create another pod")
}

// howToSeparate states what makes two environments able to run the same task.
const howToSeparate = "let both declare their environment: " + howToDeclare

// howToDeclare states what makes an Airflow declare its environment.
const howToDeclare = "label the namespace of each Airflow with " + taskpod.LabelDeclare + "=enabled and restart Airflow"

func compose(reason Reason, what string, rest ...string) string {
	return fmt.Sprintf("solepod: %s. %s [%s]", what, strings.Join(rest, ". "), reason)
}

func describeTask(p taskpod.Pod) string {
	id, _ := p.Identity()
	line := fmt.Sprintf("Task: %s of DAG %s, run %s", safe(id.Task), safe(id.DAG), safe(id.Run))
	if id.Mapped {
		line += ", map index " + safe(id.MapIndex)
	}
	return line + ", try " + tryOf(p)
}

func describePod(p taskpod.Pod, now time.Time, s Settings) string {
	env := orUnknown(p.Environment(s.EnvironmentLabel))
	switch {
	case p.Environment(s.EnvironmentLabel) == "":
	case p.Stamped:
		env += " (stamped, not declared)"
	case !p.Declares(s.EnvironmentLabel):
		env += " (labelled, not declared)"
	}
	return fmt.Sprintf("%s/%s, environment %s, %s, try %s, age %s",
		safe(p.Namespace), orUnknown(p.Name), env, describePhase(p, now), tryOf(p), age(p.Created, now))
}

func describePhase(p taskpod.Pod, now time.Time) string {
	phase := "phase " + orUnknown(string(p.Phase))
	switch {
	case p.Deleting && len(p.Deletion.Finalizers) > 0:
		phase += " (being deleted, with the finalizers " + list(p.Deletion.Finalizers) + ")"
	case p.Deleting && p.Deletion.Node != "" && now.After(p.Deletion.Due):
		phase += " (being deleted, and waits for the kubelet of node " + safe(p.Deletion.Node) + ")"
	case p.Deleting:
		phase += " (being deleted)"
	case p.Over != nil:
		phase += fmt.Sprintf(" (container %s ended %s ago and %s runs on)", safe(p.Over.Container), age(p.Over.At, now), list(p.Over.Running))
	}
	return phase
}

// list names at most three words.
func list(words []string) string {
	const most = 3
	var out []string
	for i, word := range words {
		if i == most {
			out = append(out, fmt.Sprintf("%d more", len(words)-most))
			break
		}
		out = append(out, safe(word))
	}
	return strings.Join(out, " and ")
}

func describeRequester(r Requester) string {
	text := fmt.Sprintf("Requested by %s, environment %s", safe(r.Username), environmentsOf(r))
	if r.Guessed {
		text += " (a guess: the label of the namespace of the pod)"
	}
	return text
}

// environmentsOf names the environments of a requester.
func environmentsOf(r Requester) string {
	var names []string
	for _, name := range r.environments() {
		names = append(names, safe(name))
	}
	return cmp.Or(strings.Join(names, " and "), "unknown")
}

func tryOf(p taskpod.Pod) string { return orUnknown(p.Labels[taskpod.LabelTry]) }

func age(created, now time.Time) string {
	if created.IsZero() {
		return "unknown"
	}
	return duration.HumanDuration(now.Sub(created))
}

// orUnknown is safe for words that may be empty.
func orUnknown(word string) string { return cmp.Or(safe(word), "unknown") }

// maxWord is the maximum length of one word from outside: that of the longest
// name that the API server accepts.
const maxWord = 253

// safe replaces unsafe characters of a word from outside, and cuts it at maxWord.
// Blanks are unsafe, too: Airflow's KubernetesExecutor requeues a task forever if
// the message contains "exceeded quota".
func safe(word string) string {
	if len(word) > maxWord {
		word = word[:maxWord]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("-_.:/@+=()", r):
			return r
		}
		return '_'
	}, word)
}
