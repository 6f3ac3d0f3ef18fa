package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/certs"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/guard"
)

// variant is one of what is compared. Pods carry it as a label, by which the
// webhooks of all variants stand beside one another and none hears of another's
// pods.
type variant string

const (
	none    variant = "none"    // no webhook at all
	noop    variant = "no-op"   // a mutating and a validating hook that do nothing
	floor   variant = "floor"   // the same, and the validating one creates a Lease
	solepod variant = "solepod" // the real thing
	naive   variant = "naive"   // no-op, and a validating one that lists pods
)

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
	for _, v := range []variant{noop, floor, naive} {
		o.webhooks.MutatingWebhooks = append(o.webhooks.MutatingWebhooks, &admissionregistrationv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "bench-" + string(v)},
			Webhooks: []admissionregistrationv1.MutatingWebhook{{
				Name: string(v) + ".bench.solepod.io", ClientConfig: service("/no-op"), Rules: creates(), ObjectSelector: selects(v),
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
	config := *plane.Config
	config.QPS = -1
	c, err := client.New(&config, client.Options{})
	if err != nil {
		return nil, err
	}
	for path, handle := range map[string]admission.HandlerFunc{
		"/no-op": func(context.Context, admission.Request) admission.Response { return admission.Allowed("") },
		"/floor": func(ctx context.Context, req admission.Request) admission.Response { return claimOne(ctx, c, req) },
		"/naive": func(ctx context.Context, req admission.Request) admission.Response { return list(ctx, c, req) },
	} {
		server.Register(path, &admission.Webhook{Handler: handle})
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
func claimOne(ctx context.Context, c client.Client, req admission.Request) admission.Response {
	if req.DryRun != nil && *req.DryRun {
		return admission.Allowed("")
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: guard.Namespace, Name: "floor-" + string(req.UID), Labels: map[string]string{label: string(floor)}}}
	if err := c.Create(ctx, lease); err != nil {
		return admission.Denied(err.Error())
	}
	return admission.Allowed("")
}

// list is what a guard does that is written in an afternoon: it asks the API
// server whether there is such a pod. It does not even work: of two pods at the
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
