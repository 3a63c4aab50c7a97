package cluster

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
	"net/http/pprof"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Status is what a running instance tells of itself over its control socket.
type Status struct {
	PID        int           `json:"pid"`
	Version    string        `json:"version"`
	Kubernetes string        `json:"kubernetes"`
	Server     string        `json:"server"`
	Context    string        `json:"context"`
	DataDir    string        `json:"dataDir"`
	Nodes      string        `json:"nodes"`
	Started    time.Time     `json:"started"`
	Ready      time.Duration `json:"readyAfter"` // from start, 0 while starting
	Parts      []PartStatus  `json:"parts"`
	// Resident is the resident memory of the process, Shim that of the containers'
	// parent, in bytes; CPU is the time both have used.
	Resident int64         `json:"residentBytes"`
	Shim     int64         `json:"shimResidentBytes"`
	CPU      time.Duration `json:"cpu"`
	Pods     int           `json:"pods"`
	Running  int           `json:"podsRunning"`
	Objects  int           `json:"objects"`
	Revision int64         `json:"revision"`
}

// PartStatus is the state of one part.
type PartStatus struct {
	Name string `json:"name"`
	// Took is how long it took to start.
	Took time.Duration `json:"took"`
	// Problem is what is wrong with it now, empty if it is well.
	Problem string `json:"problem,omitempty"`
}

// ErrNotRunning says that no instance runs on a data directory.
var ErrNotRunning = errors.New("no coracle is running on this data directory")

func controlPath(dataDir string) string { return filepath.Join(dataDir, "run", "control.sock") }

// serveControl answers on the control socket until the returned function is called.
func (c *Cluster) serveControl() (stop func(), err error) {
	path := controlPath(c.cfg.DataDir)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	// We hold the lock of the directory: what is there was left by a process that died.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(c.Status())
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, r *http.Request) {
		c.RequestStop(StopOptions{Keep: r.URL.Query().Get("keep") == "true", Now: r.URL.Query().Get("now") == "true"})
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("POST /images", c.importImage)
	mux.HandleFunc("GET /images", c.listImages)
	mux.HandleFunc("DELETE /images", c.removeImage)
	mux.HandleFunc("POST /images/pull", c.pullImage)
	c.serveCNI(mux)
	// Profiles are for whoever may read the data directory: curl --unix-socket control.sock http://coracle/debug/pprof/profile
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(l) //nolint:errcheck // ends with ErrServerClosed
	return func() {
		// Whoever asked for the stop gets the answer.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
	}, nil
}

// Control speaks with the instance that runs on a data directory.
type Control struct {
	http http.Client
}

// Connect returns a Control, or ErrNotRunning.
func Connect(dataDir string) (*Control, error) {
	path := controlPath(dataDir)
	conn, err := net.DialTimeout("unix", path, 2*time.Second)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%s: %w", dataDir, ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	conn.Close()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Control{http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}, nil
}

// Status asks for the present state.
func (c *Control) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.do(ctx, "GET", "/status", nil, &s)
}

// Stop asks the instance to end. It returns at once.
func (c *Control) Stop(ctx context.Context, how StopOptions) error {
	return c.do(ctx, "POST", fmt.Sprintf("/stop?keep=%t&now=%t", how.Keep, how.Now), nil, nil)
}

// do sends one request; an answer other than 2xx is an error with the text it bears.
func (c *Control) do(ctx context.Context, method, path string, body io.Reader, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://coracle"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return errors.New(string(bytes.TrimSpace(data)))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(data, into)
}
