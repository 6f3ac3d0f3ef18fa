package claim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// API is the uncached part of a client.Client that claims use: a read must return
// the state in etcd. There is no List, because its cost grows with the cluster.
type API interface {
	Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error
	Create(ctx context.Context, obj client.Object, opts ...client.CreateOption) error
	Update(ctx context.Context, obj client.Object, opts ...client.UpdateOption) error
	Delete(ctx context.Context, obj client.Object, opts ...client.DeleteOption) error
}

// Claimer takes claims.
type Claimer struct {
	API API
	// Namespace is that of the claims: solepod's own.
	Namespace string
	Settings  policy.Settings
	// Deleted reports whether the watch has reported the end of a pod.
	Deleted func(types.UID) bool
	// Patience is how long Take waits for a conflicting pod in flight to be created,
	// or to be deleted again, before it denies.
	Patience time.Duration
	// Identify returns the environment that a user has now, "" if it is not known. It
	// may be nil.
	Identify func(ctx context.Context, username string) string
	// Discreet leaves the names of DAGs, tasks and pods out of what a claim shows.
	Discreet bool
	// Metrics may be nil.
	Metrics *Metrics

	after func(time.Duration) <-chan time.Time // nil for time.After
}

// Take decides on a new pod with all pods that were admitted for its task. If it
// admits the pod, it writes the pod into the claim, except in a dry run.
//
// It returns before the deadline of ctx. If the claim changes faster than it can be
// read, Take returns a denial. If the API server does not respond, or the claim is
// full, it returns an error of status 503.
func (c *Claimer) Take(ctx context.Context, n policy.Submission, dryRun bool) (d policy.Decision, err error) {
	began := time.Now()
	defer func() { c.Metrics.took(began, d, err) }()
	id, ok := n.Pod.Identity()
	if !ok {
		return policy.Decision{Allowed: true}, nil
	}
	mine := holderOf(n.Pod, c.Settings.EnvironmentLabel, n.Now)
	mine.Requester = requesterOf(n.Requester.Username)
	n.Requester.Username = mine.Requester // comparable with those of holders
	if !id.Mapped {
		return c.take(ctx, id, n, mine, dryRun)
	}
	family, err := c.take(ctx, id.AnyIndex(), n, placeholderOf(mine), dryRun)
	if err != nil || !family.Allowed {
		return family, err
	}
	own, err := c.take(ctx, id, n, mine, dryRun)
	own.Supersede = append(own.Supersede, family.Supersede...)
	return own, err
}

// take adds mine to the holders of one claim. In the common case, the claim does not
// exist, and take needs one write and no read. Family placeholders mostly exist.
func (c *Claimer) take(ctx context.Context, id taskpod.Identity, n policy.Submission, mine Holder, dryRun bool) (policy.Decision, error) {
	began := time.Now()
	assumeNone := !mine.Family && !dryRun
	contended := false
	after := c.after
	if after == nil {
		after = time.After
	}
	backoff := wait.Backoff{Duration: 2 * time.Millisecond, Factor: 1.5, Jitter: 1, Steps: 1 << 10, Cap: 100 * time.Millisecond}
	for {
		decision, err := c.attempt(ctx, id, n, mine, assumeNone, dryRun)
		switch {
		case err == nil:
			if decision.Reason != policy.InFlight || time.Since(began) >= c.Patience {
				return decision, nil
			}
		case errors.Is(err, errContended):
			contended = true
		case errors.Is(err, errFull) || !transient(err):
			return policy.Decision{}, err
		}
		// A write without a response may have succeeded. The next attempt then finds
		// its holder in the claim.
		assumeNone = false
		select {
		case <-after(backoff.Step()):
			continue
		case <-ctx.Done():
		}
		if err == nil {
			return decision, nil
		}
		if contended {
			return policy.Contended(n, c.Settings), nil
		}
		return policy.Decision{}, apierrors.NewServiceUnavailable(fmt.Sprintf("no time left: %v", err))
	}
}

// errContended is the error of a write to a claim that has changed since it was read.
var errContended = errors.New("conflicting write to the claim")

var errFull = apierrors.NewServiceUnavailable("the claim is full")

// attempt reads a claim, decides and writes the claim, once.
func (c *Claimer) attempt(ctx context.Context, id taskpod.Identity, n policy.Submission, mine Holder, assumeNone, dryRun bool) (policy.Decision, error) {
	lease := coordinationv1.Lease{}
	lease.Namespace, lease.Name = c.Namespace, Name(id)
	var seen []observation
	if !assumeNone {
		err := c.API.Get(ctx, client.ObjectKeyFromObject(&lease), &lease)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return policy.Decision{}, wrap("reading", &lease, err)
		default:
			holders, _ := read(&lease, n.Now)
			if seen, err = c.observe(ctx, id, holders); err != nil {
				return policy.Decision{}, err
			}
		}
	}
	decision, holders := decide(n, mine, seen, c.Settings)
	if dryRun || holders == nil {
		return decision, nil
	}
	if len(holders) > maxHolders {
		return policy.Decision{}, fmt.Errorf("%w: Airflow still finds %d pods of %s; delete those that have ended",
			errFull, len(holders)-1, id)
	}
	if err := write(&lease, id, holders, c.Settings.EnvironmentLabel, c.Discreet); err != nil {
		return policy.Decision{}, err
	}
	return decision, save(ctx, c.API, &lease)
}

// save creates a Lease, or updates one that was read. It returns errContended if
// the Lease has changed since.
func save(ctx context.Context, api API, lease *coordinationv1.Lease) error {
	if lease.ResourceVersion == "" {
		err := api.Create(ctx, lease)
		if apierrors.IsAlreadyExists(err) {
			return errContended
		}
		return wrap("creating", lease, err)
	}
	err := api.Update(ctx, lease)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return errContended
	}
	return wrap("updating", lease, err)
}

func wrap(doing string, lease *coordinationv1.Lease, err error) error {
	if err == nil {
		return nil
	}
	cure := ""
	if errors.Is(err, context.DeadlineExceeded) && doing != "reading" {
		cure = fmt.Sprintf("; the write of Lease %s/%s hangs: the API server or etcd is slow, or another webhook is called for Leases (solepod check names it)", lease.Namespace, lease.Name)
	}
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		// NotFound is about the namespace. When the namespace is deleted, so are
		// solepod's Role and ServiceAccount, in any order.
		cure = fmt.Sprintf("; namespace %s, or the permission to write claims in it, is missing: install solepod again, or delete its webhook configurations", lease.Namespace)
	}
	return fmt.Errorf("%s claim %s: %w%s", doing, lease.Name, err, cure)
}

// observe reads the pod of each holder from the API server.
func (c *Claimer) observe(ctx context.Context, id taskpod.Identity, holders []Holder) ([]observation, error) {
	seen := make([]observation, 0, len(holders))
	for _, h := range holders {
		x, err := lookUpPod(ctx, c.API, id, h, c.Deleted(h.UID))
		if err != nil {
			return nil, err
		}
		x.creator = creatorOf(ctx, c.Identify, h)
		seen = append(seen, x)
	}
	return seen, nil
}

// creatorOf returns the requester of a holder, with the environment that it has now.
func creatorOf(ctx context.Context, identify func(context.Context, string) string, h Holder) policy.Requester {
	r := policy.Requester{Username: h.Requester}
	if h.Requester != "" && identify != nil {
		r.Environment = identify(ctx, h.Requester)
	}
	return r
}

// Creator returns the requester that created a pod, as its claim has it: asking, if it
// was that one. It is zero if the claim does not have it.
func (c *Claimer) Creator(ctx context.Context, pod taskpod.Pod, asking policy.Requester) (policy.Requester, error) {
	id, ok := pod.Identity()
	if !ok {
		return policy.Requester{}, nil
	}
	var lease coordinationv1.Lease
	lease.Namespace, lease.Name = c.Namespace, Name(id)
	if err := c.API.Get(ctx, client.ObjectKeyFromObject(&lease), &lease); apierrors.IsNotFound(err) {
		return policy.Requester{}, nil
	} else if err != nil {
		return policy.Requester{}, wrap("reading", &lease, err)
	}
	holders, ok := read(&lease, time.Time{})
	n := slices.IndexFunc(holders, func(h Holder) bool { return h.UID == pod.UID })
	switch {
	case !ok || n < 0 || holders[n].Requester == "":
		return policy.Requester{}, nil
	case holders[n].Requester == requesterOf(asking.Username):
		return asking, nil
	}
	return creatorOf(ctx, c.Identify, holders[n]), nil
}

// lookUpPod reads the pod with the name of a holder. A pod of another task counts
// as missing. The pod of the holder is gone if its watch has reported its end (ended)
// and the API server does not have it. Both are necessary. The watch selects by
// label, and reports a pod that lost its label as deleted. And a pod that the API
// server does not have may still be created.
func lookUpPod(ctx context.Context, api API, id taskpod.Identity, h Holder, ended bool) (observation, error) {
	x := observation{Holder: h}
	if h.Pod == "" || id == (taskpod.Identity{}) {
		return x, nil
	}
	var object corev1.Pod
	err := api.Get(ctx, client.ObjectKey{Namespace: id.Namespace, Name: h.Pod}, &object)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return observation{}, fmt.Errorf("reading pod %s/%s: %w", id.Namespace, h.Pod, err)
	}
	x.gone = ended && (missing || object.UID != h.UID)
	pod := taskpod.FromPod(&object)
	if of, ok := pod.Identity(); !missing && ok && of == id && pod.Guarded() {
		x.found = &pod
	} else if !missing {
		x.other = object.UID
	}
	return x, nil
}

// transient reports whether the next attempt may succeed. All writes of claims can
// be repeated.
func transient(err error) bool {
	var answer apierrors.APIStatus
	if !errors.As(err, &answer) {
		return true // there was no response, for whatever reason
	}
	return apierrors.IsTooManyRequests(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)
}
