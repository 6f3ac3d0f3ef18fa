package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const (
	dnsName  = "solepod.solepod-system.svc"
	lifetime = 90 * 24 * time.Hour
)

// fataler is of testing and of rapid.
type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// world is a cluster whose clock is the test's.
type world struct {
	fataler
	*Rotation
	clock   time.Time
	failing string // the verb that does not work
	patches int
}

func newWorld(t fataler) *world {
	t.Helper()
	rotation, err := NewRotation(Options{
		Secret:  types.NamespacedName{Namespace: "solepod-system", Name: "solepod-tls"},
		Service: "solepod", Configurations: "solepod", Lifetime: lifetime,
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{fataler: t, Rotation: rotation, clock: time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)}
	w.now = func() time.Time { return w.clock }
	w.plan.issue = func() (generation, error) { return issueAt(w.clock, dnsName), nil }
	refused := errors.New("etcdserver: request timed out")
	fails := func(verb string) error {
		if w.failing == verb {
			return refused
		}
		return nil
	}
	service := admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: "solepod-system", Name: "solepod"}}
	w.api = fake.NewClientBuilder().WithObjects(
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "solepod-system", Name: "solepod-tls"}},
		&admissionregistrationv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "solepod"},
			Webhooks:   []admissionregistrationv1.MutatingWebhook{{Name: "stamp.solepod.io", ClientConfig: service}},
		},
		&admissionregistrationv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "solepod"},
			Webhooks: []admissionregistrationv1.ValidatingWebhook{
				{Name: "guard.solepod.io", ClientConfig: service}, {Name: "access.solepod.io", ClientConfig: service},
			},
		},
	).WithInterceptorFuncs(interceptor.Funcs{
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if err := fails("patch"); err != nil {
				return err
			}
			w.patches++
			return c.Patch(ctx, o, p, opts...)
		},
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			if err := fails("update"); err != nil {
				return err
			}
			return c.Update(ctx, o, opts...)
		},
	}).Build()
	return w
}

// issueAt makes what [cert.GenerateSelfSignedCertKeyWithOptions] makes, at
// another time and quickly.
func issueAt(now time.Time, name string) generation {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	serial := func() *big.Int {
		n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
		must(err)
		return n
	}
	sign := func(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) []byte {
		template.SerialNumber, template.NotBefore, template.NotAfter = serial(), now.Add(-backdating), now.Add(lifetime)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
		must(err)
		return pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: der})
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caPEM := sign(ca, ca, caKey, caKey)
	leaf := &x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	crt := append(sign(leaf, ca, key, caKey), caPEM...)
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	must(err)
	g, err := parse(crt, keyPEM)
	must(err)
	return g
}

func (w *world) reconcile() (reconcile.Result, error) {
	return w.Reconcile(context.Background(), reconcile.Request{NamespacedName: w.options.Secret})
}

func (w *world) mustReconcile() time.Duration {
	w.Helper()
	result, err := w.reconcile()
	if err != nil {
		w.Fatal(err)
	}
	return result.RequeueAfter
}

func (w *world) secret() *corev1.Secret {
	w.Helper()
	var secret corev1.Secret
	if err := w.api.Get(context.Background(), w.options.Secret, &secret); err != nil {
		w.Fatal(err)
	}
	return &secret
}

func (w *world) update(change func(map[string][]byte)) {
	w.Helper()
	secret := w.secret()
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	change(secret.Data)
	if err := w.api.Update(context.Background(), secret); err != nil {
		w.Fatal(err)
	}
}

// bundle is the caBundle of all hooks.
func (w *world) bundle() []byte {
	w.Helper()
	var bundle []byte
	for i, configuration := range w.configurations() {
		if err := w.api.Get(context.Background(), client.ObjectKeyFromObject(configuration), configuration); err != nil {
			w.Fatal(err)
		}
		for j, hook := range clientConfigs(configuration) {
			if i+j > 0 && !bytes.Equal(bundle, hook.CABundle) {
				w.Fatalf("the hooks have different bundles")
			}
			bundle = hook.CABundle
		}
	}
	return bundle
}

func verify(crt, bundle []byte, now time.Time) error {
	chain, err := cert.ParseCertsPEM(crt)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err = chain[0].Verify(x509.VerifyOptions{DNSName: dnsName, Roots: roots, CurrentTime: now})
	return err
}

// seen is what was there from a moment on.
type seen struct {
	from  time.Time
	value []byte
}

func note(history []seen, now time.Time, value []byte) []seen {
	if n := len(history); n > 0 && bytes.Equal(history[n-1].value, value) {
		return history
	}
	return append(history, seen{now, value})
}

// within returns the values that a reader can have that is late by less than lag.
func within(history []seen, now time.Time, lag time.Duration) [][]byte {
	var out [][]byte
	for i, s := range history {
		if i+1 == len(history) || history[i+1].from.After(now.Add(-lag)) {
			out = append(out, s.value)
		}
	}
	return out
}

// API servers always trust the certificate that is served, whatever fails and however
// late API servers and replicas receive a change.
func TestServedIsAlwaysTrusted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		again := w.mustReconcile()
		var served, trusted []seen
		failures := 0
		for range rapid.IntRange(10, 40).Draw(t, "steps") {
			served = note(served, w.clock, w.secret().Data[corev1.TLSCertKey])
			trusted = note(trusted, w.clock, w.bundle())
			for _, crt := range within(served, w.clock, w.plan.trustDelay) {
				for _, bundle := range within(trusted, w.clock, w.plan.trustDelay) {
					if err := verify(crt, bundle, w.clock); err != nil {
						t.Fatalf("at %s: %v", w.clock, err)
					}
				}
			}
			if n := bytes.Count(w.bundle(), []byte("BEGIN")); n > 4 {
				t.Fatalf("%d CAs are trusted", n)
			}
			// An event, or the time at which it wanted to look again.
			w.clock = w.clock.Add(rapid.SampledFrom([]time.Duration{again, again, again / 2, w.plan.trustDelay / 2, time.Second}).Draw(t, "passes"))
			w.failing = rapid.SampledFrom([]string{"", "", "patch", "update"}).Draw(t, "fails")
			if failures++; w.failing == "" || failures > 5 {
				w.failing, failures = "", 0
			}
			result, err := w.reconcile()
			if again = result.RequeueAfter; err != nil {
				if w.failing == "" {
					t.Fatal(err)
				}
				again = 1000 * time.Second // the longest back-off of a controller
			}
		}
	})
}

func TestRotation(t *testing.T) {
	w := newWorld(t)
	again := w.mustReconcile()
	first := w.secret().DeepCopy()
	if err := verify(first.Data[corev1.TLSCertKey], w.bundle(), w.clock); err != nil {
		t.Fatal(err)
	}
	if want := lifetime * 2 / 3; again != want {
		t.Errorf("it looks again after %s, want %s", again, want)
	}
	if w.mustReconcile(); !cmp.Equal(first, w.secret()) || w.patches != 2 {
		t.Errorf("nothing was to be done: %d patches %s", w.patches, cmp.Diff(first, w.secret()))
	}

	w.clock = w.clock.Add(again)
	if again = w.mustReconcile(); again != w.plan.trustDelay {
		t.Errorf("it looks again after %s, want %s", again, w.plan.trustDelay)
	}
	prepared := w.secret()
	if !bytes.Equal(prepared.Data[corev1.TLSCertKey], first.Data[corev1.TLSCertKey]) {
		t.Error("a certificate is served of which no API server has heard")
	}
	for name, crt := range map[string][]byte{"the one served": prepared.Data[corev1.TLSCertKey], "the next": prepared.Data[keyNextCert]} {
		if err := verify(crt, w.bundle(), w.clock); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	// The manifest is applied again, without a caBundle.
	w.clock = w.clock.Add(w.plan.trustDelay / 2)
	w.forget()
	if again = w.mustReconcile(); again != w.plan.trustDelay {
		t.Errorf("API servers have just heard of the next certificate, but it is served after %s", again)
	}
	w.clock = w.clock.Add(again)
	w.mustReconcile()
	if now := w.secret(); !bytes.Equal(now.Data[corev1.TLSCertKey], prepared.Data[keyNextCert]) || now.Data[keyNextCert] != nil || now.Annotations[annotationSince] != "" {
		t.Errorf("the next certificate is not served: %v %v", now.Annotations, now.Data)
	}
}

func (w *world) forget() {
	w.Helper()
	for _, configuration := range w.configurations() {
		if err := w.api.Get(context.Background(), client.ObjectKeyFromObject(configuration), configuration); err != nil {
			w.Fatal(err)
		}
		for _, hook := range clientConfigs(configuration) {
			hook.CABundle = nil
		}
		if err := w.api.Update(context.Background(), configuration); err != nil {
			w.Fatal(err)
		}
	}
}

func TestMended(t *testing.T) {
	for name, damage := range map[string]func(*world){
		"no caBundle":       (*world).forget,
		"an emptied Secret": func(w *world) { w.update(func(d map[string][]byte) { clear(d) }) },
		"garbage":           func(w *world) { w.update(func(d map[string][]byte) { d[corev1.TLSCertKey] = []byte("?") }) },
		"another key": func(w *world) {
			w.update(func(d map[string][]byte) { d[corev1.TLSPrivateKeyKey] = issueAt(w.clock, dnsName).key })
		},
		"garbage as CA":    func(w *world) { w.update(func(d map[string][]byte) { d[keyTrusted] = []byte("?") }) },
		"all long expired": func(w *world) { w.clock = w.clock.Add(10 * lifetime) },
		"of another namespace": func(w *world) {
			g := issueAt(w.clock, "solepod.elsewhere.svc")
			w.update(func(d map[string][]byte) { d[corev1.TLSCertKey], d[corev1.TLSPrivateKeyKey] = g.crt, g.key })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mustReconcile()
			damage(w)
			if err := verify(w.secret().Data[corev1.TLSCertKey], w.bundle(), w.clock); err == nil && name != "another key" && name != "garbage as CA" {
				t.Error("nothing is damaged")
			}
			w.mustReconcile()
			if _, err := parse(w.secret().Data[corev1.TLSCertKey], w.secret().Data[corev1.TLSPrivateKeyKey]); err != nil {
				t.Error(err)
			}
			if err := verify(w.secret().Data[corev1.TLSCertKey], w.bundle(), w.clock); err != nil {
				t.Error(err)
			}
		})
	}
}

// A certificate that solepod has not issued is kept.
func TestForeignCertificateStays(t *testing.T) {
	w := newWorld(t)
	crt, key, err := cert.GenerateSelfSignedCertKey(dnsName, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := pem.Decode(crt)
	w.update(func(d map[string][]byte) {
		d[corev1.TLSCertKey], d[corev1.TLSPrivateKeyKey] = pem.EncodeToMemory(leaf), key
	})
	before := w.secret()
	if _, err := w.reconcile(); !errors.Is(err, errForeign) {
		t.Error(err)
	}
	if diff := cmp.Diff(before, w.secret()); diff != "" {
		t.Error(diff)
	}
}

func TestNoSecret(t *testing.T) {
	w := newWorld(t)
	if err := w.api.Delete(context.Background(), w.secret()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.reconcile(); err == nil || !strings.Contains(err.Error(), "install solepod again to create it") {
		t.Error(err)
	}
	if _, err := w.GetCertificate(nil); err == nil || !strings.Contains(err.Error(), "solepod-system/solepod-tls is missing or empty") {
		t.Error(err)
	}
}

// What the library makes is what parse wants.
func TestIssue(t *testing.T) {
	g, err := newPlan(dnsName, time.Hour).issue()
	if err != nil {
		t.Fatal(err)
	}
	if !g.validFor(dnsName, time.Now()) || g.validFor("solepod.elsewhere.svc", time.Now()) {
		t.Errorf("%v", g.leaf.DNSNames)
	}
	if lives := time.Until(g.leaf.NotAfter).Round(time.Minute); lives != time.Hour {
		t.Errorf("it lives for %s", lives)
	}
	if !slices.Equal(g.leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) || g.leaf.IsCA {
		t.Errorf("%v", g.leaf.ExtKeyUsage)
	}
}
