package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/cert"
)

// Keys of the Secret in addition to tls.crt and tls.key, which are served.
const (
	keyTrusted  = "ca.crt" // all CAs in the caBundle, newest first
	keyNextCert = "next.crt"
	keyNextKey  = "next.key"
	// annotationSince is the time at which the CA of the next certificate was added to
	// the caBundle, in RFC 3339.
	annotationSince = "solepod.io/next-trusted-since"
)

// backdating is the time that a certificate is valid before it is issued, for
// different clocks. [cert.GenerateSelfSignedCertKeyWithOptions] sets it.
const backdating = time.Hour

// generation is a serving certificate and the CA that signed it. The key of the CA
// is not kept: every certificate has a CA of its own.
type generation struct {
	crt, key []byte // PEM; crt ends with the CA
	leaf, ca *x509.Certificate
}

// errForeign is the error for a certificate that solepod has not issued. It is not
// overwritten.
var errForeign = errors.New("its tls.crt was not issued by solepod; to serve it, set certificates.mode to Provided (--cert-dir); to replace it, delete the keys of the Secret")

// parse returns an error if the certificate and its key are invalid.
func parse(crt, key []byte) (generation, error) {
	if _, err := tls.X509KeyPair(crt, key); err != nil {
		return generation{}, err
	}
	chain, err := cert.ParseCertsPEM(crt)
	if err != nil {
		return generation{}, err
	}
	leaf, ca := chain[0], chain[len(chain)-1]
	if len(chain) != 2 || leaf.CheckSignatureFrom(ca) != nil {
		return generation{}, errForeign
	}
	return generation{crt, key, leaf, ca}, nil
}

func (g *generation) validFor(name string, now time.Time) bool {
	return g != nil && g.leaf.VerifyHostname(name) == nil && !now.Before(g.leaf.NotBefore) && now.Before(g.leaf.NotAfter)
}

// state is the content of the Secret.
type state struct {
	current *generation
	// next is in the caBundle, but not served yet.
	next  *generation
	since time.Time
	// trusted are the CAs of both, and those of earlier certificates that have not
	// expired: a replica may still serve one of them.
	trusted []*x509.Certificate
}

// read returns the state without invalid certificates, which are then issued again.
// It fails with errForeign for a certificate that solepod has not issued.
func read(secret *corev1.Secret) (state, error) {
	var s state
	current, err := parse(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	switch {
	case errors.Is(err, errForeign):
		return s, err
	case err == nil:
		s.current = &current
	}
	if next, err := parse(secret.Data[keyNextCert], secret.Data[keyNextKey]); err == nil {
		s.next = &next
		// Without the time, it would be served immediately, although API servers may
		// not trust it yet.
		if s.since, err = time.Parse(time.RFC3339Nano, secret.Annotations[annotationSince]); err != nil {
			s.next = nil
		}
	}
	if trusted, err := cert.ParseCertsPEM(secret.Data[keyTrusted]); err == nil {
		s.trusted = trusted
	}
	return s, nil
}

// write writes the state into the Secret and keeps its other keys.
func (s state) write(secret *corev1.Secret) {
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey] = s.current.crt, s.current.key
	secret.Data[keyTrusted] = s.bundle()
	delete(secret.Data, keyNextCert)
	delete(secret.Data, keyNextKey)
	delete(secret.Annotations, annotationSince)
	if s.next == nil {
		return
	}
	secret.Data[keyNextCert], secret.Data[keyNextKey] = s.next.crt, s.next.key
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	secret.Annotations[annotationSince] = s.since.UTC().Format(time.RFC3339Nano)
}

// bundle returns the caBundle of the webhook configurations.
func (s state) bundle() []byte {
	var out bytes.Buffer
	for _, ca := range s.trusted {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: ca.Raw}))
	}
	return out.Bytes()
}

// plan determines when certificates are issued and served.
type plan struct {
	// name is the DNS name of the Service.
	name string
	// lifetime is that of a certificate. The next one is issued when a third is left.
	lifetime time.Duration
	// trustDelay is the time from adding a CA to the caBundle to serving its
	// certificate. Every API server has received the change by then.
	trustDelay time.Duration
	issue      func() (generation, error)
}

func newPlan(name string, lifetime time.Duration) plan {
	return plan{name: name, lifetime: lifetime, trustDelay: min(lifetime/10, 5*time.Minute), issue: func() (generation, error) {
		crt, key, err := cert.GenerateSelfSignedCertKeyWithOptions(cert.SelfSignedCertKeyOptions{Host: name, MaxAge: lifetime + backdating})
		if err != nil {
			return generation{}, fmt.Errorf("issuing a certificate: %w", err)
		}
		return parse(crt, key)
	}}
}

// renewal returns the time at which the next generation is issued.
func (p plan) renewal(g *generation) time.Time { return g.leaf.NotAfter.Add(-p.lifetime / 3) }

// next returns the state that the Secret should have now, and the time of the next
// change.
func (p plan) next(s state, now time.Time) (_ state, again time.Time, err error) {
	if !s.next.validFor(p.name, now) {
		s.next = nil
	}
	switch {
	case s.next != nil && (!s.current.validFor(p.name, now) || !now.Before(s.since.Add(p.trustDelay))):
		s.current, s.next = s.next, nil
	case !s.current.validFor(p.name, now):
		// The first certificate is served immediately: no review can be lost.
		first, err := p.issue()
		if err != nil {
			return s, again, err
		}
		s.current = &first
	case s.next == nil && !now.Before(p.renewal(s.current)):
		next, err := p.issue()
		if err != nil {
			return s, again, err
		}
		s.next, s.since = &next, now
	}

	old := s.trusted
	s.trusted = []*x509.Certificate{s.current.ca}
	if s.next != nil {
		s.trusted = []*x509.Certificate{s.next.ca, s.current.ca}
	}
	for _, ca := range old {
		if now.Before(ca.NotAfter) && !slices.ContainsFunc(s.trusted, ca.Equal) {
			s.trusted = append(s.trusted, ca)
		}
	}
	if s.next != nil {
		return s, s.since.Add(p.trustDelay), nil
	}
	return s, p.renewal(s.current), nil
}
