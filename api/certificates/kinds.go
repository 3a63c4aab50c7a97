// Package certificates holds the Kinds of the API group certificates.k8s.io: certificate
// signing requests, trust bundles and the requests of pods.
//
// It checks what is asked for and what was issued. It never signs, and never decides who may approve.
package certificates

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

const group = certificatesv1.GroupName

// certificateBlock is the type of a PEM block with a certificate.
const certificateBlock = "CERTIFICATE"

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		requestKind(),
		trustBundleKind(),
		podRequestKind(),
	}
}

// SignerName checks the name of a signer: a domain of two labels at least, and a path.
func SignerName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	domain, rest, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(rest, "/") {
		return field.ErrorList{field.Invalid(path, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")}
	}
	const longest = 253
	var errs field.ErrorList
	if len(domain) > longest {
		errs = append(errs, field.TooLong(path, domain, longest))
	}
	labels := strings.Split(domain, ".")
	for _, l := range labels {
		for _, m := range validate.DNSLabel(l) {
			errs = append(errs, field.Invalid(path, domain, fmt.Sprintf("validating label %q: %s", l, m)))
		}
	}
	if len(labels) < 2 {
		errs = append(errs, field.Invalid(path, domain, "should be a domain with at least two segments separated by dots"))
	}
	for _, l := range strings.Split(rest, ".") {
		for _, m := range validate.DNSSubdomain(l) {
			errs = append(errs, field.Invalid(path, rest, fmt.Sprintf("validating label %q: %s", l, m)))
		}
	}
	if len(rest) > longest {
		errs = append(errs, field.TooLong(path, rest, longest))
	}
	return errs
}

// ParseRequest reads the PEM block of a certificate signing request and checks its signature.
func ParseRequest(text []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return r, r.CheckSignature()
}

// issued checks PEM text that a signer gave: certificates and nothing else but remarks between them.
func issued(text []byte) error {
	count := 0
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != certificateBlock {
			return fmt.Errorf("only CERTIFICATE PEM blocks are allowed, found %q", block.Type)
		}
		if len(block.Headers) > 0 {
			return errors.New("no PEM block headers are permitted")
		}
		found, err := x509.ParseCertificates(block.Bytes)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return errors.New("found CERTIFICATE PEM block containing 0 certificates")
		}
		count += len(found)
		text = rest
	}
	if count == 0 {
		return errors.New("must contain at least one CERTIFICATE PEM block")
	}
	return nil
}

// anchors checks the PEM text of a trust bundle.
func anchors(text string, path *field.Path) field.ErrorList {
	const most = 1 << 20
	var errs field.ErrorList
	invalid := func(format string, args ...any) {
		errs = append(errs, field.Invalid(path, "<value omitted>", fmt.Sprintf(format, args...)))
	}
	if len(text) > most {
		return field.ErrorList{field.TooLong(path, "", most)}
	}
	var seen [][]byte
	rest := []byte(text)
	for i := 0; ; i++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != certificateBlock {
			invalid("entry %d has bad block type: %v", i, block.Type)
		}
		if len(block.Headers) > 0 {
			invalid("entry %d has PEM block headers", i)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			invalid("entry %d does not parse as X.509", i)
			continue
		}
		if !c.IsCA {
			invalid("entry %d does not have the CA bit set", i)
		}
		if !c.BasicConstraintsValid {
			invalid("entry %d has invalid basic constraints", i)
		}
		for k := range seen {
			if bytes.Equal(seen[k], block.Bytes) {
				invalid("duplicate trust anchor (indices %v)", []int{k, i})
			}
		}
		seen = append(seen, block.Bytes)
	}
	if len(seen) == 0 && len(errs) == 0 {
		invalid("at least one trust anchor must be provided")
	}
	return errs
}
