package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/certs"
	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/solepod"
)

// variant is one of the compared guards. Pods carry it as a label, so that the
// webhooks of each variant receive only the pods of that variant.
type variant string

const (
	none        variant = "none"    // no webhook at all
	noop        variant = "no-op"   // a mutating and a validating hook that do nothing
	floor       variant = "floor"   // the same, and the validating one creates a Lease
	withSolepod variant = "solepod" // the real thing
	naive       variant = "naive"   // no-op, and a validating one that lists pods

	// What the floor would be otherwise.
	floorJSON  variant = "floor-json"  // in JSON in place of protobuf
	floorDial  variant = "floor-dial"  // on a new connection each time
	floorFull  variant = "floor-full"  // with all that solepod writes into a claim
	floorStamp variant = "floor-stamp" // the mutating hook adds to the pod what solepod adds
)

// stamp is the mutating hook of floorStamp.
const stamp variant = "stamp"

// served are those that stand in for something.
func served() []variant {
	return []variant{noop, floor, naive, floorJSON, floorDial, floorFull, floorStamp}
}

const label = "bench"

// others are the servers that stand in for what is not solepod, on the same
// stack as solepod's: controller-runtime, TLS 1.3 and HTTP/1.1.
type others struct {
	webhooks envtest.WebhookInstallOptions
	plane    *controlplane.ControlPlane
}

func startOthers(ctx context.Context, plane *controlplane.ControlPlane) (*others, error) {
	address, err := controlplane.FreeAddress(ctx, "127.0.0.1")
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	o := &others{plane: plane}
	o.webhooks.LocalServingHost = host
	if o.webhooks.LocalServingPort, err = strconv.Atoi(port); err != nil {
		return nil, err
	}
	for _, v := range served() {
		mutating := noop
		if v == floorStamp {
			mutating = stamp
		}
		o.webhooks.MutatingWebhooks = append(o.webhooks.MutatingWebhooks, &admissionregistrationv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "bench-" + string(v)},
			Webhooks: []admissionregistrationv1.MutatingWebhook{{
				Name: string(v) + ".bench.solepod.io", ClientConfig: service("/" + string(mutating)), Rules: creates(), ObjectSelector: selects(v),
				SideEffects: new(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
			}},
		})
		o.webhooks.ValidatingWebhooks = append(o.webhooks.ValidatingWebhooks, &admissionregistrationv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "bench-" + string(v)},
			Webhooks: []admissionregistrationv1.ValidatingWebhook{{
				Name: string(v) + ".bench.solepod.io", ClientConfig: service("/" + string(v)), Rules: creates(), ObjectSelector: selects(v),
				SideEffects: new(admissionregistrationv1.SideEffectClassNoneOnDryRun), AdmissionReviewVersions: []string{"v1"},
			}},
		})
	}
	if err := o.webhooks.PrepWithoutInstalling(); err != nil {
		return nil, err
	}
	source, err := certs.Files(o.webhooks.LocalServingCertDir)
	if err != nil {
		return nil, err
	}
	server := ctrlwebhook.NewServer(ctrlwebhook.Options{
		Host: host, Port: o.webhooks.LocalServingPort, CertDir: o.webhooks.LocalServingCertDir,
		TLSOpts: []func(*tls.Config){certs.TLS(source, certs.Clients{})},
	})
	handlers := map[variant]admission.HandlerFunc{
		noop: func(context.Context, admission.Request) admission.Response { return admission.Allowed("") },
		stamp: func(context.Context, admission.Request) admission.Response {
			return admission.Patched("",
				jsonpatch.NewOperation("add", "/metadata/labels/airflow-environment", "alpha"),
				jsonpatch.NewOperation("add", "/metadata/annotations", map[string]string{taskpod.AnnotationEnvironment: taskpod.Stamped}),
			)
		},
	}
	for v, change := range map[variant]func(*rest.Config){
		floor: nil, naive: nil, floorFull: nil, floorStamp: nil,
		floorJSON: func(c *rest.Config) { c.ContentType = runtime.ContentTypeJSON },
		floorDial: func(c *rest.Config) {
			c.Wrap(func(t http.RoundTripper) http.RoundTripper {
				t.(*http.Transport).DisableKeepAlives = true
				return t
			})
		},
	} {
		config := rest.CopyConfig(plane.Config)
		if change != nil {
			// Of its own, not one that is shared with others of the same settings.
			config.Proxy = http.ProxyFromEnvironment
			change(config)
		}
		c, err := newClient(config)
		if err != nil {
			return nil, err
		}
		handlers[v] = func(ctx context.Context, req admission.Request) admission.Response {
			if v == naive {
				return list(ctx, c, req)
			}
			return claimOne(ctx, c, req, v)
		}
	}
	for v, handle := range handlers {
		server.Register("/"+string(v), &admission.Webhook{Handler: handle})
	}
	go func() { _ = server.Start(ctx) }() // until the bench ends
	return o, nil
}

func (o *others) install() error { return o.webhooks.Install(o.plane.Config) }

func service(path string) admissionregistrationv1.WebhookClientConfig {
	return admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: "bench", Name: "bench", Path: &path}}
}

func creates() []admissionregistrationv1.RuleWithOperations {
	return []admissionregistrationv1.RuleWithOperations{{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
	}}
}

func selects(v variant) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{label: string(v)}}
}

// claimOne is the least that makes an admission exclusive: one object whose
// name is the task's.
func claimOne(ctx context.Context, c client.Client, req admission.Request, v variant) admission.Response {
	if req.DryRun != nil && *req.DryRun {
		return admission.Allowed("")
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Namespace: solepod.Namespace, Name: "floor-" + string(req.UID), Labels: map[string]string{label: string(v)},
	}}
	if v == floorFull {
		var pod metav1.PartialObjectMetadata
		if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
			return admission.Errored(http.StatusBadRequest, err)
		}
		line, now := fmt.Sprintf("%s (alpha) for %s/bench/%s/run_id=%s", pod.Name, pod.Namespace, pod.Labels["task_id"], pod.Labels["run_id"]), metav1.NowMicro()
		lease.Spec.HolderIdentity, lease.Spec.AcquireTime = &line, &now
		lease.Annotations = map[string]string{"bench/holders": fmt.Sprintf(`[{"pod":%q,"uid":%q,"environment":"alpha","try":"1","claimedAt":%q}]`, pod.Name, pod.UID, now.Format(time.RFC3339))}
		for _, key := range []string{"dag_id", "task_id", "run_id"} {
			lease.Labels[key] = pod.Labels[key]
		}
		lease.Labels["bench/namespace"], lease.Labels["bench/claim"], lease.Labels["bench/environment"] = pod.Namespace, "v1", "alpha"
	}
	if err := c.Create(ctx, lease); err != nil {
		return admission.Denied(err.Error())
	}
	return admission.Allowed("")
}

// list is the simplest guard: it lists the pods of the task. It is not exact: of two pods at the
// same moment it admits both.
func list(ctx context.Context, c client.Client, req admission.Request) admission.Response {
	var pod metav1.PartialObjectMetadata
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	same := client.MatchingLabels{}
	for _, key := range []string{"dag_id", "task_id", "run_id"} {
		same[key] = pod.Labels[key]
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(req.Namespace), same); err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	if len(pods.Items) > 0 {
		return admission.Denied(fmt.Sprintf("there is %s already", pods.Items[0].Name))
	}
	return admission.Allowed("")
}
