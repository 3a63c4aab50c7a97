package cluster

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"

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

// pinned checks that the pin, if there is one, is that of one of the authorities in PEM.
func pinned(ca []byte, pin string) error {
	if pin == "" {
		return nil
	}
	want, err := parseCAHash(pin)
	if err != nil {
		return err
	}
	for rest := ca; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return errors.New("the control plane's certificate authority is not the one of --ca-hash: this is another cluster, or somebody is between")
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			if sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo); bytes.Equal(sum[:], want) {
				return nil
			}
		}
	}
}

// discover learns the control plane's authority: from a server that nobody vouches for yet, believed because the pin
// fits and because only who knows the token can have signed it
// (https://kubernetes.io/docs/reference/setup-tools/kubeadm/kubeadm-join/#token-based-discovery-with-ca-pinning).
func discover(ctx context.Context, j *Join) ([]byte, error) {
	if j.Token == "" || j.CAHash == "" {
		return nil, errors.New("joining needs --token and --ca-hash: `coracle token create --print-join-command` on the control plane prints them")
	}
	info, err := readClusterInfo(ctx, j.Server)
	if err != nil {
		return nil, err
	}
	text := info.Data[bootstrapapi.KubeConfigKey]
	if err := verifySignature(info, text, j.Token); err != nil {
		return nil, err
	}
	config, err := clientcmd.Load([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("cluster-info: %w", err)
	}
	for _, cluster := range config.Clusters {
		if ca := cluster.CertificateAuthorityData; len(ca) > 0 {
			return ca, pinned(ca, j.CAHash)
		}
	}
	return nil, errors.New("cluster-info names no certificate authority")
}

// readClusterInfo asks, as a stranger and of a stranger, for what is signed.
func readClusterInfo(ctx context.Context, server string) (*corev1.ConfigMap, error) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}
	web := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	url := server + "/api/v1/namespaces/" + metav1.NamespacePublic + "/configmaps/" + bootstrapapi.ConfigMapClusterInfo
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		info, err := fetchConfigMap(ctx, web, url)
		if err == nil {
			return info, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the control plane at %s cannot be reached: %w", server, err)
		case <-time.After(wait):
		}
	}
}

func fetchConfigMap(ctx context.Context, web *http.Client, url string) (*corev1.ConfigMap, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := web.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	cm := &corev1.ConfigMap{}
	return cm, json.Unmarshal(data, cm)
}

// verifySignature checks the signature that was made with the token: a compact JWS without its content (RFC 7515,
// appendix F), HS256.
func verifySignature(info *corev1.ConfigMap, content, token string) error {
	id, secret, _ := strings.Cut(token, ".")
	signature, ok := info.Data[bootstrapapi.JWSSignatureKeyPrefix+id]
	if !ok {
		return fmt.Errorf("the token with the ID %q is not known to the control plane, or has expired: make another with `coracle token create`", id)
	}
	parts := strings.Split(signature, "..")
	if len(parts) != 2 {
		return errors.New("the signature of cluster-info cannot be read")
	}
	header, err := base64.RawURLEncoding.DecodeString(parts[0])
	var alg struct {
		Alg string `json:"alg"`
	}
	if err != nil || json.Unmarshal(header, &alg) != nil || alg.Alg != "HS256" {
		return errors.New("the signature of cluster-info is not of a known form")
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(content))))
	if got, err := base64.RawURLEncoding.DecodeString(parts[1]); err != nil || !hmac.Equal(mac.Sum(nil), got) {
		return errors.New("what the server says of the cluster is not signed with this token: the token is wrong, or somebody is between")
	}
	return nil
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
