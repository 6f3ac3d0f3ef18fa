package check

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/yaml"
	webhookerrors "k8s.io/apiserver/pkg/admission/plugin/webhook/errors"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/declare"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// now is the time of the checks, unless a case sets another.
var now = time.Date(2026, time.November, 24, 12, 0, 0, 0, time.UTC)

const (
	selfSigned  = "install.yaml"
	certManager = "install-cert-manager.yaml"
)

// cluster is the content of the fake API server of a test. A healthy one has the
// objects of a manifest and what a cluster adds to them.
type cluster struct {
	namespace string // of solepod
	label     string // of environments
	types     *runtime.Scheme
	objects   []client.Object
	ca        authority
	now       time.Time
	version   string
	// refused are requests that RBAC denies to the administrator, each as a verb
	// and a kind.
	refused []string
	// silent is set if no request is answered.
	silent bool
	// noCertManager is set if the CRDs of cert-manager are not installed.
	noCertManager bool
	// denial is that of another admission plugin, for each pod.
	denial error
}

// newCluster has the objects of a file in manifests, with the namespace of
// solepod and the label of environments replaced.
func newCluster(t *testing.T, manifest, namespace, label string) *cluster {
	t.Helper()
	c := &cluster{
		namespace: namespace, label: label, types: runtime.NewScheme(), now: now, version: "v1.37.2",
		ca: newAuthority(t, nil), noCertManager: manifest != certManager,
	}
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, cmapi.AddToScheme} {
		if err := add(c.types); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(filepath.Join("..", "..", "manifests", manifest))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("solepod-system", namespace, "airflow-environment", label).Replace(string(content))
	decode := serializer.NewCodecFactory(c.types).UniversalDeserializer().Decode
	for documents := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096); ; {
		var raw runtime.RawExtension
		if err := documents.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(raw.Raw) == 0 || string(raw.Raw) == "null" { // a comment
			continue
		}
		object, _, err := decode(raw.Raw, nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, raw.Raw)
		}
		c.objects = append(c.objects, object.(client.Object))
	}
	c.start(t, manifest)
	return c
}

// start adds what a cluster adds to the manifests.
func (c *cluster) start(t *testing.T, manifest string) {
	t.Helper()
	// The API server's defaults.
	edit(name, func(m *admissionregistrationv1.MutatingWebhookConfiguration) {
		for i := range m.Webhooks {
			m.Webhooks[i].ClientConfig.Service.Port = ptr.To[int32](443)
			m.Webhooks[i].ClientConfig.CABundle = c.ca.pem
		}
	})(t, c)
	edit(name, func(v *admissionregistrationv1.ValidatingWebhookConfiguration) {
		for i := range v.Webhooks {
			v.Webhooks[i].ClientConfig.Service.Port = ptr.To[int32](443)
			v.Webhooks[i].ClientConfig.CABundle = c.ca.pem
			if v.Webhooks[i].ObjectSelector == nil {
				v.Webhooks[i].ObjectSelector = &metav1.LabelSelector{}
			}
		}
	})(t, c)
	edit(c.namespace, func(n *corev1.Namespace) { n.Labels[corev1.LabelMetadataName] = c.namespace })(t, c)

	// The controllers, the scheduler and the kubelets.
	edit(name, func(d *appsv1.Deployment) {
		d.Status = appsv1.DeploymentStatus{Replicas: 2, ReadyReplicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}
	})(t, c)
	own := map[string]string{"app.kubernetes.io/name": name}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: c.namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, i := range []string{"1", "2"} {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{"192.0.2." + i}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
		add(
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-" + i}},
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "solepod-" + i, Labels: own}, Spec: corev1.PodSpec{NodeName: "node-" + i}},
		)(t, c)
	}
	add(slice)(t, c)

	// solepod, or cert-manager for it.
	if manifest == certManager {
		add(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "solepod-tls"}})(t, c)
		edit(name, func(certificate *cmapi.Certificate) {
			certificate.Status.Conditions = []cmapi.CertificateCondition{
				{Type: cmapi.CertificateConditionIssuing, Status: cmmeta.ConditionFalse},
				{Type: cmapi.CertificateConditionReady, Status: cmmeta.ConditionTrue},
			}
		})(t, c)
	}
	serve(c.ca.chain(t, c.host(), now.Add(-time.Hour), now.Add(3*time.Hour)))(t, c)
	add(&coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: ptr.To("solepod-1_uid"), RenewTime: ptr.To(metav1.NewMicroTime(now.Add(-59 * time.Second))),
		},
	})(t, c)

	// Two Airflows, with a task each, and what has nothing to do with solepod.
	for _, environment := range []string{"alpha", "production"} {
		namespace := "airflow-" + environment
		pod := taskPod(namespace, environment)
		pod.Labels[c.label], pod.Labels["solepod.io/declared"] = environment, "v1"
		add(
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{corev1.LabelMetadataName: namespace, c.label: environment, "solepod.io/declare": "enabled"}}},
			&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "default"}},
			airflowPod(namespace, "scheduler", declare.Source(c.label, environment)),
			pod, claimOf("claim-"+environment, c.namespace, pod.UID, now.Add(-time.Hour)),
		)(t, c)
	}
	jobs := taskPod("airflow-alpha", "of-a-job")
	jobs.OwnerReferences = []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: "x", UID: "x", Controller: ptr.To(true)}}
	add(jobs,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", Labels: map[string]string{corev1.LabelMetadataName: "kube-system"}}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "airflow-alpha", Name: "database"}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "another-programs"}},
	)(t, c)
}

// host is the name that API servers call solepod by.
func (c *cluster) host() string { return "solepod." + c.namespace + ".svc" }

// taskPod is a task pod that does not declare an environment.
func taskPod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name, UID: types.UID(namespace + "/" + name),
		Labels: map[string]string{"kubernetes_pod_operator": "True", "dag_id": "d", "task_id": "t", "run_id": name},
	}}
}

// airflowPod is a pod of Airflow, with the file that solepod injects unless it is
// empty.
func airflowPod(namespace, name, source string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: types.UID(namespace + "/" + name), Labels: map[string]string{"pod-template-hash": "6c8d"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "airflow-" + name + "-6c8d", UID: "x", Controller: ptr.To(true)}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: name, Image: "apache/airflow:2.10.5", Args: []string{"airflow", name}}}},
	}
	if source != "" {
		pod.Annotations = map[string]string{declare.Annotation: source}
	}
	return pod
}

// claimOf is a claim with one holder.
func claimOf(name, namespace string, pod types.UID, at time.Time) *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name, Labels: map[string]string{"solepod.io/claim": "v1"},
		Annotations: map[string]string{"solepod.io/holders": fmt.Sprintf(`[{"pod":"x","uid":%q,"claimedAt":%q}]`, pod, at.Format(time.RFC3339))},
	}}
}

// fault changes a cluster.
type fault func(*testing.T, *cluster)

func add(objects ...client.Object) fault {
	return func(_ *testing.T, c *cluster) { c.objects = append(c.objects, objects...) }
}

// is reports whether an object is of a type and has a name.
func is[O client.Object](object client.Object, name string) bool {
	_, same := object.(O)
	return same && object.GetName() == name
}

func remove[O client.Object](name string) fault {
	return func(t *testing.T, c *cluster) {
		t.Helper()
		before := len(c.objects)
		if c.objects = slices.DeleteFunc(c.objects, func(o client.Object) bool { return is[O](o, name) }); len(c.objects) == before {
			t.Fatalf("there is no %T %s to remove", *new(O), name)
		}
	}
}

func edit[O client.Object](name string, change func(O)) fault {
	return func(t *testing.T, c *cluster) {
		t.Helper()
		i := slices.IndexFunc(c.objects, func(o client.Object) bool { return is[O](o, name) })
		if i < 0 {
			t.Fatalf("there is no %T %s to edit", *new(O), name)
		}
		change(c.objects[i].(O))
	}
}

// serve puts a certificate, as PEM, into the Secret.
func serve(chain []byte) fault {
	return edit("solepod-tls", func(s *corev1.Secret) { s.Data = map[string][]byte{"tls.crt": chain} })
}

// of returns the objects of a type.
func of[O client.Object](c *cluster) (out []O) {
	for _, object := range c.objects {
		if o, same := object.(O); same {
			out = append(out, o)
		}
	}
	return out
}

// run does all checks against the cluster.
func (c *cluster) run(t *testing.T) []Result {
	t.Helper()
	write := func(verb string, object client.Object) error {
		t.Errorf("the check would %s %T %s", verb, object, object.GetName())
		return errors.New("the check writes")
	}
	// Nothing is applied; the default converter takes most of a test's time.
	converter := managedfields.NewDeducedTypeConverter()
	server := fake.NewClientBuilder().WithScheme(c.types).WithTypeConverters(converter).WithObjects(c.objects...).WithInterceptorFuncs(interceptor.Funcs{
		Get: func(ctx context.Context, inner client.WithWatch, key client.ObjectKey, object client.Object, opts ...client.GetOption) error {
			if err := c.refuse("get", object); err != nil {
				return err
			}
			return inner.Get(ctx, key, object, opts...)
		},
		List: func(ctx context.Context, inner client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if err := c.refuse("list", list); err != nil {
				return err
			}
			if err := inner.List(ctx, list, opts...); err != nil {
				return err
			}
			return paginate(list, opts)
		},
		Create: func(_ context.Context, _ client.WithWatch, object client.Object, opts ...client.CreateOption) error {
			if err := c.refuse("create", object); err != nil {
				return err
			}
			var o client.CreateOptions
			o.ApplyOptions(opts)
			pod, isPod := object.(*corev1.Pod)
			if isPod && slices.Equal(o.DryRun, []string{metav1.DryRunAll}) {
				return c.admit(pod)
			}
			if review, isReview := object.(*authorizationv1.SubjectAccessReview); isReview {
				review.Status.Allowed = c.allows(review.Spec)
				return nil
			}
			return write("create", object)
		},
		Update: func(_ context.Context, _ client.WithWatch, object client.Object, _ ...client.UpdateOption) error {
			return write("update", object)
		},
		Patch: func(_ context.Context, _ client.WithWatch, object client.Object, _ client.Patch, _ ...client.PatchOption) error {
			return write("patch", object)
		},
		Delete: func(_ context.Context, _ client.WithWatch, object client.Object, _ ...client.DeleteOption) error {
			return write("delete", object)
		},
	}).Build()
	i := &Installation{
		Client: server, Namespace: c.namespace, Version: "v0.1.0", Now: func() time.Time { return c.now },
		KubernetesVersion: func() (string, error) {
			if c.silent {
				return "", context.DeadlineExceeded
			}
			return c.version, nil
		},
	}
	return i.Run(t.Context()).Checks
}

// refuse returns the error of a request that times out, is not allowed, or has a kind
// that the API server does not serve.
func (c *cluster) refuse(verb string, object runtime.Object) error {
	if c.silent {
		return context.DeadlineExceeded
	}
	kind, err := apiutil.GVKForObject(object, c.types)
	if err != nil {
		return err
	}
	kind.Kind = strings.TrimSuffix(kind.Kind, "List")
	if kind.Group == cmapi.SchemeGroupVersion.Group && c.noCertManager {
		return &meta.NoKindMatchError{GroupKind: kind.GroupKind(), SearchedVersions: []string{kind.Version}}
	}
	if slices.Contains(c.refused, verb+" "+kind.Kind) {
		resource, _ := meta.UnsafeGuessKindToResource(kind)
		return apierrors.NewForbidden(resource.GroupResource(), "", fmt.Errorf("User %q cannot %s resource %q in API group %q", "jane", verb, resource.Resource, kind.Group))
	}
	return nil
}

// paginate returns two objects a page, so that a reader of the first page misses some.
func paginate(list client.ObjectList, opts []client.ListOption) error {
	var o client.ListOptions
	o.ApplyOptions(opts)
	if o.Limit == 0 {
		return nil
	}
	items, err := meta.ExtractList(list)
	if err != nil {
		return err
	}
	from := 0
	if o.Continue != "" {
		if from, err = strconv.Atoi(o.Continue); err != nil {
			return err
		}
	}
	to := min(from+2, len(items))
	if to < len(items) {
		list.SetContinue(strconv.Itoa(to))
	}
	return meta.SetList(list, items[from:to])
}

// admit answers a dry run: it calls the webhooks that select the pod, if the
// Service has an endpoint. They answer by pkg/policy, as solepod does. It
// neither verifies certificates nor evaluates matchConditions: test/install
// has an API server that does.
func (c *cluster) admit(pod *corev1.Pod) error {
	if c.denial != nil {
		return c.denial
	}
	settings := config.Default() // what replicas run with that were started before the ConfigMap broke
	for _, m := range of[*corev1.ConfigMap](c) {
		if parsed, err := config.Parse([]byte(m.Data["config.yaml"])); err == nil {
			settings = parsed
		}
	}
	namespaces := of[*corev1.Namespace](c)
	namespace := namespaces[slices.IndexFunc(namespaces, func(n *corev1.Namespace) bool { return n.Name == pod.Namespace })]
	environment := namespace.Labels[settings.EnvironmentLabel]
	call := func(name string, rules []admissionregistrationv1.RuleWithOperations, namespaceSelector, objectSelector *metav1.LabelSelector,
		service *admissionregistrationv1.ServiceReference, failurePolicy *admissionregistrationv1.FailurePolicyType) error {
		creates := func(r admissionregistrationv1.RuleWithOperations) bool {
			return slices.Contains(r.Operations, admissionregistrationv1.Create) && slices.Contains(r.Resources, "pods")
		}
		if name == "owner.solepod.io" && metav1.GetControllerOf(pod) == nil {
			return nil // its matchConditions
		}
		if service == nil || !slices.ContainsFunc(rules, creates) || !matches(namespaceSelector, namespace.Labels) || !matches(objectSelector, pod.Labels) {
			return nil
		}
		if !c.reachable() {
			if *failurePolicy == admissionregistrationv1.Ignore {
				return nil
			}
			return apierrors.NewInternalError(fmt.Errorf("failed calling webhook %q: failed to call webhook: no endpoints available for service %q", name, service.Name))
		}
		switch *service.Path {
		case "/stamp":
			if settings.Injection == config.InjectionStamp && environment != "" {
				pod.Labels[settings.EnvironmentLabel] = environment
				pod.Annotations = map[string]string{taskpod.AnnotationEnvironment: taskpod.Stamped}
			}
		case "/guard":
			decision := policy.Decide(policy.Submission{
				Pod: taskpod.FromMeta(pod, ""), Requester: policy.Requester{Username: "jane", Environment: environment, Guessed: true}, Now: c.now,
			}, nil, settings.Policy())
			if !decision.Allowed && settings.Enforcement == config.EnforcementDeny {
				return webhookerrors.ToStatusErr(name, &metav1.Status{Code: decision.Code, Reason: metav1.StatusReasonForbidden, Message: decision.PublicMessage})
			}
		}
		return nil
	}
	for _, m := range of[*admissionregistrationv1.MutatingWebhookConfiguration](c) {
		for _, w := range m.Webhooks {
			if err := call(w.Name, w.Rules, w.NamespaceSelector, w.ObjectSelector, w.ClientConfig.Service, w.FailurePolicy); err != nil {
				return err
			}
		}
	}
	for _, v := range of[*admissionregistrationv1.ValidatingWebhookConfiguration](c) {
		for _, w := range v.Webhooks {
			if err := call(w.Name, w.Rules, w.NamespaceSelector, w.ObjectSelector, w.ClientConfig.Service, w.FailurePolicy); err != nil {
				return err
			}
		}
	}
	return nil
}

func matches(selector *metav1.LabelSelector, set map[string]string) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(labels.Set(set))
}

// reachable reports whether the Service has an endpoint that is ready.
func (c *cluster) reachable() bool {
	for _, s := range of[*discoveryv1.EndpointSlice](c) {
		for _, e := range s.Endpoints {
			if s.Labels[discoveryv1.LabelServiceName] == name && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				return true
			}
		}
	}
	return false
}

// allows answers a SubjectAccessReview by the roles in the cluster, as RBAC does.
func (c *cluster) allows(spec authorizationv1.SubjectAccessReviewSpec) bool {
	bound := func(s rbacv1.Subject) bool {
		return s.Kind == rbacv1.ServiceAccountKind && spec.User == "system:serviceaccount:"+s.Namespace+":"+s.Name
	}
	a := spec.ResourceAttributes
	covers := func(r rbacv1.PolicyRule) bool {
		return slices.Contains(r.Verbs, a.Verb) && slices.Contains(r.APIGroups, a.Group) && slices.Contains(r.Resources, a.Resource) &&
			(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, a.Name))
	}
	for _, binding := range of[*rbacv1.ClusterRoleBinding](c) {
		for _, role := range of[*rbacv1.ClusterRole](c) {
			if role.Name == binding.RoleRef.Name && slices.ContainsFunc(binding.Subjects, bound) && slices.ContainsFunc(role.Rules, covers) {
				return true
			}
		}
	}
	for _, binding := range of[*rbacv1.RoleBinding](c) {
		for _, role := range of[*rbacv1.Role](c) {
			if a.Namespace == binding.Namespace && role.Namespace == binding.Namespace && role.Name == binding.RoleRef.Name &&
				slices.ContainsFunc(binding.Subjects, bound) && slices.ContainsFunc(role.Rules, covers) {
				return true
			}
		}
	}
	return false
}

// authority is a CA.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

// newAuthority is a root, or an intermediate CA below a parent.
func newAuthority(t *testing.T, parent *authority) authority {
	t.Helper()
	called := "root"
	if parent != nil {
		called = "intermediate"
	}
	return issue(t, parent, &x509.Certificate{
		Subject: pkix.Name{CommonName: called}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0),
	})
}

// chain is a serving certificate for a host, followed by that of an
// intermediate CA.
func (a authority) chain(t *testing.T, host string, notBefore, notAfter time.Time) []byte {
	t.Helper()
	leaf := issue(t, &a, &x509.Certificate{
		DNSNames: []string{host}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotBefore: notBefore, NotAfter: notAfter,
	})
	if a.certificate.Issuer.CommonName == a.certificate.Subject.CommonName {
		return leaf.pem // a client has the root
	}
	return append(leaf.pem, a.pem...)
}

func issue(t *testing.T, parent *authority, template *x509.Certificate) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	issuer, signer := template, key
	if parent != nil {
		issuer, signer = parent.certificate, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// podDenial is how the API server's own admission plugins deny a pod.
func podDenial(format string, args ...any) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "solepod-check-x", fmt.Errorf(format, args...))
}
