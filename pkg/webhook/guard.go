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

// Guard is the validating hook. It decides on the creation of task pods, and
// on updates that make a pod a task pod.
type guard struct {
	reviewer
	enforcer
	settings   policy.Settings
	pods       podReader
	claims     claimer
	superseder client.Writer
	now        func() time.Time
}

// claims is what decides among creates at the same moment.
type claimer interface {
	Take(ctx context.Context, n policy.Submission, dryRun bool) (policy.Decision, error)
}

// Handle implements admission.Handler.
func (g *guard) Handle(ctx context.Context, req admission.Request) admission.Response {
	environment, decision, err := g.handle(ctx, req)
	if err != nil {
		return g.failed(ctx, req, err)
	}
	return g.respond(ctx, req, environment, decision)
}

// handle returns the requester's environment as well, "" if it does not matter.
func (g *guard) handle(ctx context.Context, req admission.Request) (environment string, _ policy.Decision, _ error) {
	if !isPod(req) || req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
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
	n := policy.Submission{Pod: pod, Requester: requester, Now: g.now()}
	decision, err := g.admit(ctx, n, isDryRun(req))
	return requester.Environment, decision, err
}

// admit decides on a task pod, and does what its admission takes.
func (g *guard) admit(ctx context.Context, n policy.Submission, dryRun bool) (policy.Decision, error) {
	known, err := g.decide(ctx, n)
	if err != nil || !known.Allowed {
		return known, err
	}
	// What is known admits the pod. The claim decides, beside what is too new
	// to be known, and before anything is done.
	decision, err := g.claims.Take(ctx, n, dryRun)
	if err != nil || !decision.Allowed || dryRun {
		return decision, err
	}
	decision.Supersede = union(decision.Supersede, known.Supersede)
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

// validate refuses what no API server would ask about, because it has checked
// it before: only valid words get into claims, events and metrics.
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
			continue // superseded before, or ended by itself
		}
		if err != nil {
			return err
		}
		g.enforcer.counters.superseded.Inc()
		ctrllog.FromContext(ctx).Info("Superseded", "pod", pod.Name, "podUID", pod.UID)
	}
	return nil
}

// decide asks the cache first. A denial is given only on what the API server
// itself says of the pod in the way: the cache does not know its phase, and
// lags behind. An admission needs no second look, because the end of a pod
// never turns an admission into a denial.
func (g *guard) decide(ctx context.Context, n policy.Submission) (policy.Decision, error) {
	id, _ := n.Pod.Identity()
	cached, err := g.pods.cached(id)
	if err != nil {
		return policy.Decision{}, err
	}
	var current []policy.Existing
	for {
		decision := policy.Decide(n, slices.Concat(current, cached), g.settings)
		if decision.Existing == nil {
			return decision, nil // admitted, or denied for a reason of its own
		}
		suspect := slices.IndexFunc(cached, func(x policy.Existing) bool { return x.Name == decision.Existing.Name })
		if suspect < 0 {
			return decision, nil
		}
		// In the way of a pod without a map index can be thousands: not all are
		// read to find the worst of them.
		if len(current) >= enoughReads {
			if known := policy.Decide(n, current, g.settings); !known.Allowed {
				return known, nil
			}
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

// enoughReads is how many pods are read from the API server before the first
// one that stands in the way is good enough for a denial.
const enoughReads = 16
