package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/nodejoin"
	"coracle.dev/coracle/node/metricsapi"
	"coracle.dev/coracle/node/simulated"
)

// sampleTimeout bounds how long a node elsewhere may take to tell its figures.
const sampleTimeout = 5 * time.Second

// farNodes reaches the APIs of nodes that run in other processes. The zero value is ready.
type farNodes struct {
	once      sync.Once
	transport *http.Transport
}

// reach is the transport to nodes: they are believed by the cluster's authority for the address at which they are
// reached, and shown a certificate of the API server.
func (c *Cluster) reach() *http.Transport {
	far := &c.node.far
	far.once.Do(func() {
		cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
		cfg.RootCAs.AddCert(c.keys.caCert)
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, key, err := c.keys.issue(leaf{name: "kubelet-client", cn: nodejoin.ServerUser}, c.now())
			if err != nil {
				return nil, err
			}
			pair, err := tls.X509KeyPair(cert, key)
			return &pair, err
		}
		far.transport = &http.Transport{TLSClientConfig: cfg, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second,
			DialContext:  (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}} // upgrades need HTTP/1.1
	})
	return far.transport
}

// nodeURL is where a node's API is, nil for a node that says of none.
func nodeURL(n *corev1.Node) *url.URL {
	port := n.Status.DaemonEndpoints.KubeletEndpoint.Port
	if port == 0 || simulated.IsNode(n) {
		return nil
	}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeHostName} {
		for _, a := range n.Status.Addresses {
			if a.Type == kind && dialable(a.Address) {
				return &url.URL{Scheme: "https", Host: net.JoinHostPort(a.Address, strconv.Itoa(int(port)))}
			}
		}
	}
	return nil
}

// dialable refuses addresses that only this machine or its link can reach: what a node says of itself must not lead the API server to
// something that trusts whoever is on this machine.
func dialable(address string) bool {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address != "localhost"
	}
	a = a.Unmap()
	return !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified()
}

// farNode is the API of a node in another process.
func (c *Cluster) farNode(name string) (http.Handler, error) {
	n, ok := client.Nodes.Get(c.store.Snapshot(), "", name)
	if !ok {
		return nil, fmt.Errorf("node %s is not there", name)
	}
	to := nodeURL(n)
	if to == nil || c.memory != nil {
		return nil, fmt.Errorf("node %s does not say where its API is", name)
	}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = to.Host
		},
		Transport: c.reach(), FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			http.Error(w, fmt.Sprintf("error dialing backend: %v", err), http.StatusBadGateway)
		},
	}, nil
}

// farSamples asks all nodes elsewhere what they and their pods have used. Nodes that do not answer are left out.
func (c *Cluster) farSamples(ctx context.Context) []metricsapi.NodeSample {
	if c.memory != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	var mu sync.Mutex
	var all []metricsapi.NodeSample
	var group sync.WaitGroup
	slots := make(chan struct{}, 32)
	for n := range client.Nodes.List(c.store.Snapshot(), "") {
		to := nodeURL(n)
		if to == nil || c.cfg.Nodes.Real && n.Name == c.cfg.NodeName {
			continue
		}
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			samples, err := c.farSample(ctx, to)
			if err != nil {
				c.log.Debug("a node does not tell its figures", "node", n.Name, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, s := range samples {
				if s.Node == n.Name { // and of nobody else
					s.Labels = n.Labels
					all = append(all, s)
				}
			}
		})
	}
	group.Wait()
	return all
}

func (c *Cluster) farSample(ctx context.Context, to *url.URL) ([]metricsapi.NodeSample, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to.JoinPath(samplePath).String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.reach().RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s", resp.Status)
	}
	var samples []metricsapi.NodeSample
	return samples, json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 32<<20)).Decode(&samples)
}
