package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// Attachment names one link of a container, in the words of the specification.
type Attachment struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
	// NetNS is the path of the container's namespace; DEL may have none.
	NetNS string `json:"netns,omitempty"`
}

// sandboxPrefix begins the names under which an instance keeps attachments of others beside its own pods.
const sandboxPrefix = "cni/"

// Sandbox is the name under which the attachment is kept.
func (a Attachment) Sandbox() string {
	return sandboxPrefix + a.Network + "/" + a.ContainerID + "/" + a.IfName
}

// Foreign tells whether a sandbox is an attachment of another runtime's, about which the cluster knows nothing.
func Foreign(sandbox string) bool { return strings.HasPrefix(sandbox, sandboxPrefix) }

// attachmentOf reads what Sandbox wrote.
func attachmentOf(sandbox string) (a Attachment, ok bool) {
	parts := strings.Split(sandbox, "/")
	if len(parts) != 4 || parts[0] != "cni" {
		return a, false
	}
	return Attachment{Network: parts[1], ContainerID: parts[2], IfName: parts[3]}, true
}

// Given is what an attachment has got.
type Given struct {
	Addrs    []netip.Addr `json:"addrs"`
	HostLink string       `json:"hostLink"`
}

// Keep says which attachments of a network are still valid.
type Keep struct {
	Network string               `json:"network"`
	Valid   []types.GCAttachment `json:"valid"`
}

// Pods is what serves attachments; *network.Pods is one.
type Pods interface {
	AttachAs(ctx context.Context, sandboxID, netnsPath, hostname, ifName string) ([]netip.Addr, error)
	Detach(ctx context.Context, sandboxID, netnsPath string) error
	Connected() map[string][]netip.Addr
	LinkName(sandboxID string) string
	// Ready says why no attachment can be made, nil if one can.
	Ready() error
}

// attachTimeout bounds what one call may take in the instance.
const attachTimeout = 20 * time.Second

// Serve answers plugins over an instance's control socket, at /cni/. pods returns nil while there is no network.
func Serve(mux *http.ServeMux, pods func() Pods) {
	handle := func(pattern string, f func(ctx context.Context, p Pods, body io.Reader) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			p := pods()
			if p == nil {
				http.Error(w, "this instance has no node that runs containers", http.StatusServiceUnavailable)
				return
			}
			ctx, cancel := context.WithTimeout(r.Context(), attachTimeout)
			defer cancel()
			answer, err := f(ctx, p, http.MaxBytesReader(w, r.Body, 4<<20))
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer)
		})
	}
	handle("POST /cni/add", func(ctx context.Context, p Pods, body io.Reader) (any, error) {
		var a Attachment
		if err := json.NewDecoder(body).Decode(&a); err != nil {
			return nil, err
		}
		addrs, err := p.AttachAs(ctx, a.Sandbox(), a.NetNS, a.ContainerID, a.IfName)
		return Given{Addrs: addrs, HostLink: p.LinkName(a.Sandbox())}, err
	})
	handle("POST /cni/del", func(ctx context.Context, p Pods, body io.Reader) (any, error) {
		var a Attachment
		if err := json.NewDecoder(body).Decode(&a); err != nil {
			return nil, err
		}
		return struct{}{}, p.Detach(ctx, a.Sandbox(), a.NetNS)
	})
	handle("POST /cni/check", func(_ context.Context, p Pods, body io.Reader) (any, error) {
		var a Attachment
		if err := json.NewDecoder(body).Decode(&a); err != nil {
			return nil, err
		}
		return Given{Addrs: p.Connected()[a.Sandbox()], HostLink: p.LinkName(a.Sandbox())}, nil
	})
	handle("POST /cni/gc", func(ctx context.Context, p Pods, body io.Reader) (any, error) {
		var k Keep
		if err := json.NewDecoder(body).Decode(&k); err != nil {
			return nil, err
		}
		var errs []error
		for sandbox := range p.Connected() {
			if stale(sandbox, k) {
				errs = append(errs, p.Detach(ctx, sandbox, ""))
			}
		}
		return struct{}{}, errors.Join(errs...)
	})
	handle("GET /cni/status", func(_ context.Context, p Pods, _ io.Reader) (any, error) { return struct{}{}, p.Ready() })
}

// stale tells whether a sandbox is an attachment of the network that is not valid any more.
func stale(sandbox string, k Keep) bool {
	a, ok := attachmentOf(sandbox)
	if !ok || a.Network != k.Network {
		return false
	}
	for _, v := range k.Valid {
		if v.ContainerID == a.ContainerID && v.IfName == a.IfName {
			return false
		}
	}
	return true
}

// errNoInstance says that nobody listens at the control socket.
var errNoInstance = errors.New("no coracle is running")

// instance speaks with the instance of a data directory.
type instance struct {
	dataDir string
}

func (i instance) call(method, path string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), attachTimeout+5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://coracle/cni/"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	socket := filepath.Join(i.dataDir, "run", "control.sock")
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w on %s", errNoInstance, i.dataDir)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(string(bytes.TrimSpace(answer)))
	}
	return json.Unmarshal(answer, into)
}
