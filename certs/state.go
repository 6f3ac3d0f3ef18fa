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

// What the Secret has beside tls.crt and tls.key, those that are served.
const (
	keyTrusted  = "ca.crt" // all CAs that API servers trust, newest first
	keyNextCert = "next.crt"
	keyNextKey  = "next.key"
	// annotationSince says since when API servers have been told to trust the
	// next certificate's CA, RFC 3339.
	annotationSince = "solepod.io/next-trusted-since"
)

// backdating is how much earlier than they are made certificates are valid, for
// clocks that differ. It is that of [cert.GenerateSelfSignedCertKeyWithOptions].
const backdating = time.Hour

// generation is a serving certificate and the CA that signed it, and nothing
// else: the CA's key was thrown away. A new certificate is a new generation.
type generation struct {
	crt, key []byte // PEM; crt has the CA at its end
	leaf, ca *x509.Certificate
}

// errForeign is of a certificate that has not been made here. Whoever put it
// there may need it.
var errForeign = errors.New("its tls.crt is not of solepod's making; to serve it, set certificates.mode to Provided (--cert-dir); to have it replaced, delete the keys of the Secret")

// parse returns an error if the certificate and its key can not be served.
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

// state is what the Secret says.
type state struct {
	current *generation
	// next is trusted, but not served yet.
	next  *generation
	since time.Time
	// trusted are the CAs of both, and of those before that have not expired: a
	// replica may still serve them.
	trusted []*x509.Certificate
}

// read takes what can not be used for absent, so that it is made anew, unless
// it is somebody else's.
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
		// Without a time it has to wait from the year 1, which is over; it then
		// would be served although nobody may trust it.
		if s.since, err = time.Parse(time.RFC3339Nano, secret.Annotations[annotationSince]); err != nil {
			s.next = nil
		}
	}
	if trusted, err := cert.ParseCertsPEM(secret.Data[keyTrusted]); err == nil {
		s.trusted = trusted
	}
	return s, nil
}

// write changes no other keys of the Secret.
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

// bundle is the caBundle of the webhook configurations.
func (s state) bundle() []byte {
	var out bytes.Buffer
	for _, ca := range s.trusted {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: ca.Raw}))
	}
	return out.Bytes()
}

// plan says how certificates follow one another.
type plan struct {
	// name is the DNS name that API servers call.
	name string
	// lifetime of a certificate. The next one is made when a third is left.
	lifetime time.Duration
	// trustDelay is how long API servers have to learn of a CA before a certificate
	// by it is served.
	trustDelay time.Duration
	issue      func() (generation, error)
}

func newPlan(name string, lifetime time.Duration) plan {
	return plan{name: name, lifetime: lifetime, trustDelay: min(lifetime/10, 5*time.Minute), issue: func() (generation, error) {
		crt, key, err := cert.GenerateSelfSignedCertKeyWithOptions(cert.SelfSignedCertKeyOptions{Host: name, MaxAge: lifetime + backdating})
		if err != nil {
			return generation{}, fmt.Errorf("making a certificate: %w", err)
		}
		return parse(crt, key)
	}}
}

// renewal is when the generation after one is made.
func (p plan) renewal(g *generation) time.Time { return g.leaf.NotAfter.Add(-p.lifetime / 3) }

// next is what the Secret should say now, and when to look again.
func (p plan) next(s state, now time.Time) (_ state, again time.Time, err error) {
	if !s.next.validFor(p.name, now) {
		s.next = nil
	}
	switch {
	case s.next != nil && (!s.current.validFor(p.name, now) || !now.Before(s.since.Add(p.trustDelay))):
		s.current, s.next = s.next, nil
	case !s.current.validFor(p.name, now):
		// The first one. Nothing can be lost: nobody could be served.
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
