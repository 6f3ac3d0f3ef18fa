package webhook

import (
	"context"
	"errors"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/retire"
	"github.com/solepod/solepod/pkg/taskpod"
)

// guard is the validating hook for new task pods. It decides on creates, and on
// updates that turn a pod into a task pod.
type guard struct {
	reviewer
	enforcer
	settings   policy.Settings
	pods       podReader
	claims     claimer
	superseder client.Writer
	now        func() time.Time
}

// claimer decides among concurrent creates.
type claimer interface {
	Take(ctx context.Context, n policy.Submission, dryRun bool) (policy.Decision, error)
	// Creator returns the requester that created a pod, as far as it is known.
	Creator(ctx context.Context, pod taskpod.Pod, asking policy.Requester) (policy.Requester, error)
}

// Handle implements admission.Handler.
func (g *guard) Handle(ctx context.Context, req admission.Request) admission.Response {
	environment, decision, err := g.handle(ctx, req)
	if err != nil {
		return g.failed(ctx, req, err)
	}
	return g.respond(ctx, req, environment, decision)
}

// handle also returns the environment of the requester, "" if it is not needed.
func (g *guard) handle(ctx context.Context, req admission.Request) (environment string, _ policy.Decision, _ error) {
	creates := isPod(req) && req.Operation == admissionv1.Create
	if !creates && !updatesPod(req) {
		return "", policy.Decision{Allowed: true}, nil
	}
	object, err := decodePod("object", req.Object, req)
	if err != nil {
		return "", policy.Decision{}, err
	}
	pod := object.pod()
	if req.Operation == admissionv1.Update {
		before, err := decodePod("oldObject", req.OldObject, req)
		if err != nil {
			return "", policy.Decision{}, err
		}
		if !policy.BecomesTaskPod(before.pod(), pod) {
			return "", policy.Decision{Allowed: true}, nil
		}
	}
	if !pod.Guarded() {
		return "", policy.Decision{Allowed: true}, nil
	}
	if err := validate("object", pod); err != nil {
		return "", policy.Decision{}, err
	}
	requester, err := g.requester(ctx, req)
	if err != nil {
		return "", policy.Decision{}, err
	}
	n := policy.Submission{Pod: pod, Requester: requester, GeneratesName: object.GenerateName != "", Now: g.now()}
	decision, err := g.admit(ctx, n, isDryRun(req))
	if err == nil && decision.Reason == policy.DuplicateEnvironment {
		decision = g.abandoned(ctx, n, decision)
	}
	return requester.Environment, decision, err
}

// abandoned returns a denial with another message if the environment of the existing pod
// no longer exists.
func (g *guard) abandoned(ctx context.Context, n policy.Submission, decision policy.Decision) policy.Decision {
	environment := decision.Existing.Environment(g.settings.EnvironmentLabel)
	if environment == "" {
		return decision
	}
	exists, err := g.resolver.Exists(ctx, environment)
	if err != nil {
		ctrllog.FromContext(ctx).Error(brief(err), "Could not look for an environment")
	}
	if exists || err != nil {
		return decision
	}
	return policy.Abandoned(n, *decision.Existing, g.settings)
}

// admit decides on a task pod. If it admits the pod, it has written the claim and
// retired the pods of earlier tries.
func (g *guard) admit(ctx context.Context, n policy.Submission, dryRun bool) (policy.Decision, error) {
	first, err := g.decide(ctx, n)
	if err != nil || !first.Allowed {
		return first, err
	}
	// The cached pods do not conflict. The claim decides, because the cache may lack
	// the newest pods.
	decision, err := g.claims.Take(ctx, n, dryRun)
	if err != nil || !decision.Allowed || dryRun {
		return decision, err
	}
	decision.Supersede = union(decision.Supersede, first.Supersede)
	return decision, g.supersede(ctx, decision.Supersede)
}

func union(a, b []taskpod.Pod) []taskpod.Pod {
	for _, pod := range b {
		if !slices.ContainsFunc(a, func(p taskpod.Pod) bool { return p.UID == pod.UID }) {
			a = append(a, pod)
		}
	}
	return a
}

// validate returns an error for metadata that the API server would have refused
// before it called a webhook. Claims, events and metrics then contain valid values
// only, even if a review is forged.
func validate(object string, pod taskpod.Pod) error {
	metadata := field.NewPath(object, "metadata")
	errs := metav1validation.ValidateLabels(pod.Labels, metadata.Child("labels"))
	for _, problem := range apivalidation.NameIsDNSSubdomain(pod.Name, false) {
		errs = append(errs, field.Invalid(metadata.Child("name"), pod.Name, problem))
	}
	for _, problem := range apivalidation.NameIsDNSLabel(pod.Namespace, false) {
		errs = append(errs, field.Invalid(metadata.Child("namespace"), pod.Namespace, problem))
	}
	for _, problem := range apivalidation.NameIsDNSSubdomain(string(pod.UID), false) {
		errs = append(errs, field.Invalid(metadata.Child("uid"), pod.UID, problem))
	}
	if len(errs) > 0 {
		return badRequest("%v", errs[0])
	}
	return nil
}

// supersede retires the pods of earlier tries.
func (g *guard) supersede(ctx context.Context, pods []taskpod.Pod) error {
	for _, pod := range pods {
		err := retire.Pod(ctx, g.superseder, pod, "", "superseded by a later try")
		if errors.Is(err, retire.ErrChanged) {
			continue // superseded before, or deleted
		}
		if err != nil {
			return err
		}
		g.enforcer.counters.superseded.Inc()
		ctrllog.FromContext(ctx).Info("Superseded", "pod", pod.Name, "podUID", pod.UID)
	}
	return nil
}

// decide decides with the cached pods first. Before it denies, it reads the
// conflicting pod from the API server, because the cache lags behind and does not
// have the phase. It also reads the creator of that pod from its claim. An admission
// needs no such read: the end of a pod never turns an admission into a denial.
func (g *guard) decide(ctx context.Context, n policy.Submission) (policy.Decision, error) {
	id, _ := n.Pod.Identity()
	cached, err := g.pods.cached(id)
	if err != nil {
		return policy.Decision{}, err
	}
	if named := g.pods.cachedNamed(ctx, n.Pod); named != nil && named.UID != n.Pod.UID &&
		!slices.ContainsFunc(cached, func(x policy.Existing) bool { return x.Name == n.Pod.Name }) {
		cached = append(cached, policy.Existing{Pod: *named}) // of another task
	}
	var current []policy.Existing
	asked := map[string]bool{} // for their creators
	for {
		decision := policy.Decide(n, slices.Concat(current, cached), g.settings)
		if decision.Existing == nil {
			return decision, nil // admitted, or denied without a conflicting pod
		}
		suspect := slices.IndexFunc(cached, func(x policy.Existing) bool { return x.Name == decision.Existing.Name })
		// Thousands of pods can conflict with a pod without a map index. Not all of
		// them are read to find the worst.
		if suspect >= 0 && len(current) >= enoughReads {
			if d := policy.Decide(n, current, g.settings); !d.Allowed {
				decision, suspect = d, -1
			}
		}
		if suspect < 0 {
			x := slices.IndexFunc(current, func(x policy.Existing) bool { return x.Name == decision.Existing.Name })
			if x < 0 || asked[current[x].Name] || len(asked) >= enoughReads {
				return decision, nil
			}
			asked[current[x].Name] = true
			if current[x].Creator, err = g.claims.Creator(ctx, current[x].Pod, n.Requester); err != nil {
				return policy.Decision{}, err
			}
			continue
		}
		now, err := g.pods.current(ctx, cached[suspect])
		if err != nil {
			return policy.Decision{}, err
		}
		cached = slices.Delete(cached, suspect, suspect+1)
		if now != nil {
			current = append(current, *now)
		}
	}
}

// enoughReads is the number of pods to read from the API server before the first
// conflict among them is sufficient for a denial.
const enoughReads = 16
