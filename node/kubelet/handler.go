package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/machine"
	"coracle.dev/coracle/linux/notify"
	"coracle.dev/coracle/volume"
)

// Config is what the node API is served from. Objects that functions return are shared and not changed.
type Config struct {
	// NodeName is this node's name.
	NodeName string
	// Pods gives the pods of this node, with their status as the agent knows it now.
	Pods func() []*corev1.Pod
	// Pod finds one of them, nil if there is none.
	Pod func(namespace, name string) *corev1.Pod
	// Sandbox gives the runtime's sandbox of a pod, "" if there is none.
	Sandbox func(uid types.UID) string
	// Container gives the runtime's ID of the container that bears this name now, "" if there is none;
	// with previous, of the instance before it.
	Container func(uid types.UID, name string, previous bool) string
	// Runtime runs the containers.
	Runtime container.Runtime
	// Volumes measures the volumes of a pod (volume.Manager.Usages). May be nil.
	Volumes func(ctx context.Context, uid types.UID) ([]volume.Usage, error)
	// RootDir lies on the file system of pods and logs, ImageDir on that of images and containers; their
	// figures are part of the summary.
	RootDir, ImageDir string
	// Network gives the traffic of a pod's interfaces. Nil: read in its network namespace.
	Network func(container.SandboxStatus) ([]machine.Interface, error)
	// Node measures the machine. Nil: this one.
	Node func() (NodeUsage, error)
	// DialPod connects to a port of a pod, for port forwarding. Nil: Runtime.Dial.
	DialPod func(ctx context.Context, pod *corev1.Pod, sandboxID string, port int) (net.Conn, error)
	// Metrics answers /metrics. Nil: the figures of the pods and of the process.
	Metrics http.Handler
	Log     *slog.Logger
	// Now is the clock of sinceSeconds and of timestamps; time.Now if nil.
	Now func() time.Time
}

// Server answers the node API. It is an http.Handler; connections that were upgraded are
// closed by Close.
type Server struct {
	cfg Config
	mux *http.ServeMux
	// files wakes those who follow logs.
	files notify.Watcher
	conns connections
	// life ends with Close.
	life context.Context
	end  context.CancelFunc
	// quiet is what the stream libraries log to.
	quiet logr.Logger
	cpu   cpuMemory
}

// Handler makes a Server.
func Handler(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.DialPod == nil {
		cfg.DialPod = func(ctx context.Context, _ *corev1.Pod, sandboxID string, port int) (net.Conn, error) {
			return cfg.Runtime.Dial(ctx, sandboxID, port)
		}
	}
	if cfg.Network == nil {
		cfg.Network = func(s container.SandboxStatus) ([]machine.Interface, error) { return machine.Interfaces(s.NetNS) }
	}
	if cfg.Node == nil {
		cfg.Node = func() (NodeUsage, error) { return readNode(cfg.RootDir, cfg.ImageDir) }
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux(), quiet: logr.FromSlogHandler(quietHandler{cfg.Log.Handler()})}
	s.life, s.end = context.WithCancel(context.Background())
	s.mux.HandleFunc("GET /healthz", s.healthz)
	s.mux.HandleFunc("GET /healthz/{check}", s.healthz)
	s.mux.HandleFunc("GET /pods", s.pods)
	s.mux.HandleFunc("GET /pods/{$}", s.pods)
	s.mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	for _, method := range []string{"GET ", "POST "} {
		s.mux.HandleFunc(method+"/exec/{namespace}/{pod}/{container}", s.exec)
		s.mux.HandleFunc(method+"/exec/{namespace}/{pod}/{uid}/{container}", s.exec)
		s.mux.HandleFunc(method+"/attach/{namespace}/{pod}/{container}", s.attach)
		s.mux.HandleFunc(method+"/attach/{namespace}/{pod}/{uid}/{container}", s.attach)
		s.mux.HandleFunc(method+"/portForward/{namespace}/{pod}", s.portForward)
		s.mux.HandleFunc(method+"/portForward/{namespace}/{pod}/{uid}", s.portForward)
	}
	s.mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.run)
	s.mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", s.run)
	s.mux.HandleFunc("GET /stats/summary", s.statsSummary)
	s.mux.HandleFunc("GET /metrics/resource", s.metricsResource)
	s.mux.HandleFunc("GET /metrics/cadvisor", s.metricsCadvisor)
	if cfg.Metrics == nil {
		cfg.Metrics = http.HandlerFunc(s.metricsOwn)
	}
	s.mux.Handle("GET /metrics", cfg.Metrics)
	return s
}

// ServeHTTP answers one request. The path is the kubelet's own ("/exec/default/web/app"). The writer must
// be able to be hijacked where a connection is upgraded.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(klog.NewContext(r.Context(), s.quiet))
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	r = r.WithContext(ctx)
	s.mux.ServeHTTP(w, r)
}

// Close ends all upgraded connections and the commands behind them, and refuses new ones.
func (s *Server) Close() error {
	s.end()
	s.conns.close()
	return nil
}

func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	if st := s.cfg.Runtime.Status(); !st.Ready && r.PathValue("check") != "ping" {
		http.Error(w, "container runtime is down: "+st.Message, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprint(w, "ok")
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{}
	list.Kind, list.APIVersion = "PodList", "v1"
	list.Items = []corev1.Pod{}
	for _, p := range s.cfg.Pods() {
		list.Items = append(list.Items, *p)
	}
	writeJSON(w, &list)
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(data)
}

// httpError is an error with the status that it is answered with.
type httpError struct {
	code int
	msg  string
}

func (e *httpError) Error() string { return e.msg }

// fail answers with an error, as bare text.
func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	if he, ok := err.(*httpError); ok {
		code = he.code
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	fmt.Fprint(w, err.Error())
}

// target is the container that a request is about.
type target struct {
	pod       *corev1.Pod
	container string
	// id is the runtime's.
	id string
}

// running finds the container that a request to exec or attach is for.
func (s *Server) running(r *http.Request) (target, error) {
	t := target{container: r.PathValue("container")}
	t.pod = s.cfg.Pod(r.PathValue("namespace"), r.PathValue("pod"))
	if t.pod == nil || !uidMatches(t.pod, r.PathValue("uid")) {
		return t, &httpError{http.StatusNotFound, "pod does not exist"}
	}
	t.id = s.cfg.Container(t.pod.UID, t.container, false)
	if t.id == "" {
		return t, fmt.Errorf("container not found (%q)", t.container)
	}
	st, err := s.cfg.Runtime.Container(t.id)
	if err != nil || st.State != container.StateRunning {
		return t, fmt.Errorf("container not found (%q)", t.container)
	}
	return t, nil
}

func uidMatches(pod *corev1.Pod, uid string) bool { return uid == "" || string(pod.UID) == uid }

// boolParam reads a flag from the query, in the names of the kubelet ("1") and of the pods API
// ("true").
func boolParam(r *http.Request, names ...string) bool {
	q := r.URL.Query()
	for _, name := range names {
		switch strings.ToLower(q.Get(name)) {
		case "1", "true", "t":
			return true
		}
	}
	return false
}

// quietHandler logs everything as debugging: the stream libraries report each connection that a client drops as an
// error, which it is not here.
type quietHandler struct{ slog.Handler }

// Enabled tells whether debugging is logged.
func (q quietHandler) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle lowers the level.
func (q quietHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q quietHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietHandler{q.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (q quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{q.Handler.WithGroup(name)}
}
