package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// pki is what the cluster is known by: its certificate authorities and what they signed. All keys are
// ECDSA P-256; files are readable by their owner alone.
type pki struct {
	// authority signs the API server's certificate and those of clients.
	authority
	// frontProxy signs the certificate with which the API server speaks for users to aggregated servers, and nothing else:
	// whoever it knows may name any user.
	frontProxy authority
	// serviceAccounts signs the tokens of service accounts.
	serviceAccounts *ecdsa.PrivateKey
}

// authority is a certificate authority whose files are in dir.
type authority struct {
	dir    string
	caCert *x509.Certificate
	caPEM  []byte
	caKey  *ecdsa.PrivateKey
}

// Lifetimes. A leaf is made anew when less than a third of its life is left.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
)

// loadPKI reads the keys of a state directory, or makes them if it has none. Without a directory ("") it makes keys that
// live in memory alone.
func loadPKI(dir string, now time.Time) (*pki, error) {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	p := &pki{}
	var err error
	if p.authority, err = loadAuthority(dir, "ca", "coracle-ca", now); err != nil {
		return nil, err
	}
	if p.frontProxy, err = loadAuthority(dir, "front-proxy-ca", "front-proxy-ca", now); err != nil {
		return nil, err
	}
	if p.serviceAccounts, err = loadKey(file(dir, "service-accounts.key")); err != nil {
		return nil, err
	}
	return p, nil
}

// loadAuthority reads the files of an authority, or makes them if they are not there.
func loadAuthority(dir, name, cn string, now time.Time) (authority, error) {
	p := authority{dir: dir}
	var err error
	if p.caKey, err = loadKey(file(dir, name+".key")); err != nil {
		return p, err
	}
	path := file(dir, name+".crt")
	p.caPEM, err = readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		template := &x509.Certificate{Subject: pkix.Name{CommonName: cn}, IsCA: true,
			BasicConstraintsValid: true, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(caLife),
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign}
		if p.caPEM, err = sign(template, template, &p.caKey.PublicKey, p.caKey); err == nil {
			err = writeFile(path, p.caPEM, 0o644)
		}
	}
	if err != nil {
		return p, err
	}
	if p.caCert, err = parseCert(p.caPEM); err != nil {
		return p, fmt.Errorf("%s: %w", path, err)
	}
	if !p.caCert.PublicKey.(*ecdsa.PublicKey).Equal(&p.caKey.PublicKey) {
		return p, fmt.Errorf("%s does not belong to %s.key beside it: restore both from a backup, or run `coracle reset`", path, name)
	}
	return p, nil
}

// leaf describes a certificate that the authority signs.
type leaf struct {
	name   string // of the files
	cn     string
	orgs   []string
	hosts  []string // DNS names and addresses
	server bool
}

// issue returns certificate and key of a leaf in PEM: those on disk if they are
// still good for this subject and all hosts, otherwise new ones.
func (p *authority) issue(l leaf, now time.Time) (cert, key []byte, err error) {
	certPath := file(p.dir, l.name+".crt")
	private, err := loadKey(file(p.dir, l.name+".key"))
	if err != nil {
		return nil, nil, err
	}
	if key, err = keyPEM(private); err != nil {
		return nil, nil, err
	}
	if cert, err = readFile(certPath); err == nil {
		if c, err := parseCert(cert); err == nil && p.good(c, l, private, now) {
			return cert, key, nil
		}
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: l.cn, Organization: l.orgs},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(leafLife), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if l.server {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, h := range l.hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	if cert, err = sign(template, p.caCert, &private.PublicKey, p.caKey); err != nil {
		return nil, nil, err
	}
	return cert, key, writeFile(certPath, cert, 0o644)
}

// outlived tells whether it is time for another leaf in the place of this one.
func outlived(c *x509.Certificate, now time.Time) bool {
	return now.After(c.NotAfter.Add(-leafLife / 3))
}

func (p *authority) good(c *x509.Certificate, l leaf, key *ecdsa.PrivateKey, now time.Time) bool {
	if outlived(c, now) || c.CheckSignatureFrom(p.caCert) != nil {
		return false
	}
	if pub, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(&key.PublicKey) {
		return false
	}
	if c.Subject.CommonName != l.cn || !slices.Equal(c.Subject.Organization, l.orgs) {
		return false // another release gave it other rights
	}
	for _, h := range l.hosts {
		if c.VerifyHostname(h) != nil {
			return false
		}
	}
	return true
}

func sign(template, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func parseCert(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("not a PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// file is where a file of a directory is, "" for a directory that is in memory alone.
func file(dir, name string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, name)
}

// readFile is os.ReadFile; a path of "" is a file that does not exist.
func readFile(path string) ([]byte, error) {
	if path == "" {
		return nil, fs.ErrNotExist
	}
	return os.ReadFile(path)
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

// loadKey reads a private key, or makes it if the file does not exist.
func loadKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		data, err := keyPEM(key)
		if err != nil {
			return nil, err
		}
		return key, writeFile(path, data, 0o600)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s is not a PEM key: restore it from a backup, or run `coracle reset`", path)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// writeFile replaces a file in one step, so that a crash leaves the old one or
// the new one. A path of "" is written nowhere.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	if path == "" {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
