package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// review is a review of the creation of a pod, as the API server sends it.
func review(t *testing.T, pod *corev1.Pod) []byte {
	t.Helper()
	return reviewOf(t, pod, "00000000-0000-0000-0000-000000000001")
}

func reviewOf(t *testing.T, pod *corev1.Pod, uid types.UID) []byte {
	t.Helper()
	pod.UID = uid
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "review-1", Operation: admissionv1.Create, Namespace: pod.Namespace, Name: pod.Name,
			Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
			Object:   runtime.RawExtension{Raw: raw},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// post sends a review straight to a guard, over a connection of its own.
func post(t *testing.T, g *solepod.Process, body io.Reader) (*admissionv1.AdmissionResponse, *tls.ConnectionState, error) {
	t.Helper()
	return postTo(t, g, "/guard", body)
}

func postTo(t *testing.T, g *solepod.Process, path string, body io.Reader) (*admissionv1.AdmissionResponse, *tls.ConnectionState, error) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(g.CA)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+g.Address+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, nil, err
	}
	var out admissionv1.AdmissionReview
	err = json.NewDecoder(resp.Body).Decode(&out)
	return out.Response, resp.TLS, errors.Join(err, resp.Body.Close())
}

// With empty caches, solepod would find no other pod. It must not be ready, and must
// not admit reviews that reach it in spite of that.
func TestNotReadyWithoutCaches(t *testing.T) {
	w := newWorld(t, "not-ready")
	stranger, err := plane.ServiceAccount(t.Context(), w.jobs, "may-read-nothing")
	if err != nil {
		t.Fatal(err)
	}
	g, err := solepod.Start(t.Context(), plane, solepod.Options{Identity: stranger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
	})
	// It serves from the start, which is when the caches begin to fill.
	var answer *admissionv1.AdmissionResponse
	fixture.Eventually(t, func() (err error) {
		answer, _, err = post(t, g, bytes.NewReader(review(t, w.pod("x"))))
		return err
	})
	if answer.Allowed || answer.Result.Code != http.StatusServiceUnavailable || !strings.Contains(answer.Result.Message, "the caches are still filling") {
		t.Errorf("allowed %v: %+v", answer.Allowed, answer.Result)
	}
	if err := g.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "caches failed") {
		t.Errorf("ready: %v", err)
	}
}

func TestTLS(t *testing.T) {
	g := shared.Own(t, plane, solepod.Options{})
	w := newWorld(t, "tls")
	_, state, err := post(t, g, bytes.NewReader(review(t, w.pod("x"))))
	if err != nil || state.Version != tls.VersionTLS13 {
		t.Fatalf("%v: %+v", err, state)
	}
	old := &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}} //nolint:gosec // what must be refused
	if conn, err := old.DialContext(t.Context(), "tcp", g.Address); err == nil {
		t.Errorf("TLS 1.2 was accepted: %v", conn.Close())
	}

	// A new certificate is served without a restart.
	g.CA = renew(t, g.CertDir)
	fixture.Eventually(t, func() error {
		_, _, err := post(t, g, bytes.NewReader(review(t, w.pod("x"))))
		return err
	})
}

// renew replaces the certificate in a folder by another, and returns the CA
// that verifies it: itself.
func renew(t *testing.T, dir string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "renewed"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	template.IPAddresses = append(template.IPAddresses, []byte{127, 0, 0, 1})
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, content := range map[string][]byte{
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		"tls.crt": certificate,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate
}

// On SIGTERM an admission that is under way is answered before the end.
func TestDrain(t *testing.T) {
	w := newWorld(t, "drain")
	g := shared.Own(t, plane, solepod.Options{})

	// The request is running as soon as the guard reads its body. The second half
	// arrives only after the guard has started to stop.
	body := review(t, w.pod("x"))
	reader, writer := io.Pipe()
	type result struct {
		answer *admissionv1.AdmissionResponse
		err    error
	}
	answered := make(chan result, 1)
	go func() {
		answer, _, err := post(t, g, reader)
		answered <- result{answer, err}
	}()
	if _, err := writer.Write(body[:len(body)/2]); err != nil {
		t.Fatal(err)
	}
	contains := func(where string, content []byte, err error, want string) error {
		if err == nil && !bytes.Contains(content, []byte(want)) {
			err = fmt.Errorf("%q is not in the %s", want, where)
		}
		return err
	}
	fixture.Eventually(t, func() error {
		metrics, err := g.Metrics(t.Context())
		return contains("metrics", metrics, err, `controller_runtime_webhook_requests_in_flight{webhook="/guard"} 1`)
	})
	if err := g.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, func() error {
		log, err := os.ReadFile(g.Log)
		return contains("log", log, err, "Shutting down webhook server")
	})
	if _, err := writer.Write(body[len(body)/2:]); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got.err != nil || !got.answer.Allowed {
		t.Errorf("%v: %+v", got.err, got.answer)
	}
	<-g.Done()
	if err := g.Err(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
