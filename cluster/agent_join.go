package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/client/remote"
	"coracle.dev/coracle/controllers/nodejoin"
)

// joined is what a node knows of the control plane. It is kept in <data-dir>/agent.
type joined struct {
	server  string
	ca      []byte // PEM
	network nodejoin.Network
}

// joinedFile is <data-dir>/agent/cluster.json.
type joinedFile struct {
	Server  string            `json:"server"`
	Network map[string]string `json:"network"`
}

func (c *Cluster) agentDir() string { return filepath.Join(c.cfg.DataDir, "agent") }

// join makes this machine known to the control plane, or finds that it is, and fills in c.agent.
func (c *Cluster) join(ctx context.Context) error {
	dir, j := c.agentDir(), c.cfg.Join
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	a := c.agent
	err := a.load(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if j.Server != "" {
		a.server = j.Server
	}
	if a.server == "" {
		return errors.New("this data directory belongs to no cluster yet: give --server, --token and --ca-hash (`coracle token create --print-join-command` on the control plane prints them)")
	}
	if len(a.ca) == 0 {
		if a.ca, err = discover(ctx, j); err != nil {
			return err
		}
	} else if err := pinned(a.ca, j.CAHash); err != nil {
		return err
	}
	a.keys = nodeKeys{dir: dir, node: c.cfg.NodeName}
	if err := a.keys.load(time.Now()); err != nil {
		return err
	}
	if a.keys.certificate() == nil {
		if err := c.firstCertificate(ctx); err != nil {
			return err
		}
	}
	if err := c.readNetwork(ctx); err != nil {
		return err
	}
	return a.save(dir)
}

// load reads what an earlier join left.
func (j *joined) load(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err != nil {
		return err
	}
	var f joinedFile
	if err := json.Unmarshal(data, &f); err != nil {
		return fmt.Errorf("%w: %s/cluster.json cannot be read: remove it and join again with a token", ErrDamaged, dir)
	}
	if j.network, err = nodejoin.Parse(f.Network); err != nil {
		return fmt.Errorf("%w: %s/cluster.json: %w", ErrDamaged, dir, err)
	}
	j.server = f.Server
	j.ca, err = os.ReadFile(filepath.Join(dir, "ca.crt"))
	return err
}

func (j *joined) save(dir string) error {
	data, err := json.MarshalIndent(joinedFile{j.server, j.network.Data()}, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(writeFile(filepath.Join(dir, "ca.crt"), j.ca, 0o644),
		writeFile(filepath.Join(dir, "cluster.json"), append(data, '\n'), 0o644))
}

// parseCAHash reads "sha256:HEX".
func parseCAHash(s string) ([]byte, error) {
	text, ok := strings.CutPrefix(strings.ToLower(s), "sha256:")
	hash, err := hex.DecodeString(text)
	if !ok || err != nil || len(hash) != sha256.Size {
		return nil, fmt.Errorf(`ca-hash: %q is not "sha256:" and 64 hexadecimal digits`, s)
	}
	return hash, nil
}

// CAHash is the pin of an authority's certificate in PEM, as kubeadm writes it.
func CAHash(ca []byte) (string, error) {
	cert, err := parseCert(ca)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// pinned checks that the pin, if there is one, is that of an authority in PEM.
func pinned(ca []byte, pin string) error {
	if pin == "" {
		return nil
	}
	have, err := CAHash(ca)
	if err == nil && have != strings.ToLower(pin) {
		err = errOtherAuthority
	}
	return err
}

var errOtherAuthority = errors.New("the control plane's certificate authority is not the one of --ca-hash: this is another cluster, or somebody is between")

// discover learns the control plane's authority, in PEM. Nobody vouches for it but the pin: the server shows it beside its own
// certificate, and nothing, the token least of all, is sent before it was found to be the right one.
func discover(ctx context.Context, j *Join) ([]byte, error) {
	if j.Token == "" || j.CAHash == "" {
		return nil, errors.New("joining needs --token and --ca-hash: `coracle token create --print-join-command` on the control plane prints them")
	}
	server, err := url.Parse(j.Server)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	address := server.Host
	if server.Port() == "" {
		address = net.JoinHostPort(server.Hostname(), "443")
	}
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		ca, err := handshake(ctx, address, j.CAHash)
		if err == nil || errors.Is(err, errOtherAuthority) {
			return ca, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the control plane at %s cannot be reached: %w", j.Server, err)
		case <-time.After(wait):
		}
	}
}

// handshake connects, and returns the authority that the pin is of if the server's certificate is by it and for the API.
func handshake(ctx context.Context, address, pin string) ([]byte, error) {
	var found []byte
	verify := func(state tls.ConnectionState) error {
		var err error
		found, err = pinnedAuthority(state.PeerCertificates, pin)
		return err
	}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second},
		// What the library would verify is not known yet: VerifyConnection does it.
		Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, ServerName: apiServerName, VerifyConnection: verify}}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return found, conn.Close()
}

// pinnedAuthority finds the authority among the certificates that a server showed, the first of which is its own.
func pinnedAuthority(shown []*x509.Certificate, pin string) ([]byte, error) {
	want, err := parseCAHash(pin)
	if err != nil {
		return nil, err
	}
	for _, ca := range shown[min(1, len(shown)):] {
		if sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo); !bytes.Equal(sum[:], want) {
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(ca)
		if _, err := shown[0].Verify(x509.VerifyOptions{DNSName: apiServerName, Roots: roots}); err != nil {
			return nil, fmt.Errorf("the server's certificate: %w", err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), nil
	}
	return nil, errOtherAuthority
}

// firstCertificate asks for the node's certificate with the bootstrap token.
func (c *Cluster) firstCertificate(ctx context.Context) error {
	if c.cfg.Join.Token == "" {
		return errors.New("this node has no certificate that is good any more: give --token (`coracle token create` on the control plane makes one)")
	}
	api, err := remote.New(remote.Config{Server: c.agent.server, TLS: c.agent.tlsConfig(nil), Token: c.cfg.Join.Token, Registry: c.registry, Log: c.log})
	if err != nil {
		return err
	}
	return c.agent.keys.renew(ctx, api)
}

// readNetwork asks what the cluster's network is. Without an answer the one of before is good.
func (c *Cluster) readNetwork(ctx context.Context) error {
	api, err := remote.New(remote.Config{Server: c.agent.server, TLS: c.agent.tlsConfig(c.agent.keys.certificate), Registry: c.registry, Log: c.log})
	if err != nil {
		return err
	}
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		obj, err := api.Get(ctx, client.ConfigMaps.Name, metav1.NamespaceSystem, nodejoin.ConfigMap)
		if err == nil {
			n, err := nodejoin.Parse(obj.(*corev1.ConfigMap).Data)
			if err != nil {
				return fmt.Errorf("the cluster's network: %w", err)
			}
			return c.takeNetwork(n)
		}
		if len(c.agent.network.Pods) > 0 {
			c.log.Warn("the cluster's network cannot be asked for", "error", err)
			return c.takeNetwork(c.agent.network)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("read the cluster's network: %w", err)
		case <-time.After(wait):
		}
	}
}
