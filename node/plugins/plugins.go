// Package plugins finds the drivers that run on a node: each puts a socket into one directory, answers there what it is, and
// is told whether it was taken (kubelet's plugin registration, k8s.io/kubelet/pkg/apis/pluginregistration/v1).
//
// It owns the watch of that directory. It knows no kind of plugin: handlers by type do.
package plugins

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Types of plugins, as they name themselves.
const (
	CSI    = registerapi.CSIPlugin
	DRA    = registerapi.DRAPlugin
	Device = registerapi.DevicePlugin
)

// Plugin is what a driver says of itself.
type Plugin struct {
	Type, Name string
	// Endpoint is the socket at which it does its work; that of its registration if it names no other.
	Endpoint string
	// Versions are the services that it offers, as its type writes them.
	Versions []string
	// Socket is that of its registration, and identifies it.
	Socket string
}

// Handler takes the plugins of one type. Its methods are called one at a time for one socket, and must not block for long.
type Handler interface {
	// Register takes a plugin, or says why not, which the plugin is told. It may be called again for the same socket.
	Register(ctx context.Context, p Plugin) error
	// Deregister is called when the socket of a plugin that was taken is gone.
	Deregister(p Plugin)
}

// Timing of the registration.
const (
	answerTimeout = 10 * time.Second
	firstRetry    = 500 * time.Millisecond
	mostRetry     = 2 * time.Minute
	mostSockets   = 1000 // of a directory; what is beyond is not looked at
)

// Registry follows a directory. Make it with New.
type Registry struct {
	dir      string
	handlers map[string]Handler
	log      *slog.Logger

	mu    sync.Mutex // guards socks
	socks map[string]context.CancelFunc
	ended sync.WaitGroup
}

// New returns a Registry of a directory, which Run makes. Handlers are by type.
func New(dir string, handlers map[string]Handler, log *slog.Logger) *Registry {
	return &Registry{dir: dir, handlers: handlers, log: log, socks: map[string]context.CancelFunc{}}
}

// Run follows the directory until ctx is done, and then forgets all plugins without telling their handlers.
func (r *Registry) Run(ctx context.Context) error {
	if err := os.MkdirAll(r.dir, 0o750); err != nil {
		return err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	watch := os.NewFile(uintptr(fd), "inotify") // non-blocking: reads wait in the poller
	defer watch.Close()
	if _, err := unix.InotifyAddWatch(fd, r.dir, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_ONLYDIR); err != nil {
		return fmt.Errorf("watch %s: %w", r.dir, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer r.ended.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { watch.Close() })
	defer stop()
	// What an event says is read anew from the directory: events may be lost, and a socket may have been replaced.
	buf := make([]byte, 64<<10)
	for {
		r.scan(ctx)
		n, err := watch.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch %s: %w", r.dir, err)
		}
		r.replaced(buf[:n])
	}
}

// replaced ends the plugins of whose sockets events tell that they were deleted or made anew.
func (r *Registry) replaced(events []byte) {
	for len(events) >= unix.SizeofInotifyEvent {
		length := int(uint32(events[12]) | uint32(events[13])<<8 | uint32(events[14])<<16 | uint32(events[15])<<24)
		end := unix.SizeofInotifyEvent + length
		if end > len(events) {
			return
		}
		name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:end]), "\x00")
		events = events[end:]
		if name != "" {
			r.drop(filepath.Join(r.dir, name))
		}
	}
}

func (r *Registry) drop(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if end := r.socks[path]; end != nil {
		end()
		delete(r.socks, path)
	}
}

// scan follows the sockets that are there and leaves those that are not.
func (r *Registry) scan(ctx context.Context) {
	entries, err := os.ReadDir(r.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("plugin directory", "err", err)
	}
	there := map[string]bool{}
	for _, e := range entries[:min(len(entries), mostSockets)] {
		if e.Type()&fs.ModeSocket != 0 && !strings.HasPrefix(e.Name(), ".") {
			there[filepath.Join(r.dir, e.Name())] = true
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for path, end := range r.socks {
		if !there[path] {
			end()
			delete(r.socks, path)
		}
	}
	for path := range there {
		if r.socks[path] == nil {
			one, end := context.WithCancel(ctx)
			r.socks[path] = end
			r.ended.Go(func() { r.follow(ctx, one, path) })
		}
	}
}

// follow registers the plugin of a socket, again and again until it works, and keeps it until the socket is gone. all ends
// with the registry.
func (r *Registry) follow(all, ctx context.Context, path string) {
	for wait := firstRetry; ; wait = min(2*wait, mostRetry) {
		p, err := r.register(ctx, path)
		if err == nil {
			r.log.Info("plugin registered", "type", p.Type, "name", p.Name, "endpoint", p.Endpoint)
			<-ctx.Done()
			if all.Err() == nil {
				r.handlers[p.Type].Deregister(p)
				r.log.Info("plugin is gone", "type", p.Type, "name", p.Name)
			}
			return
		}
		if ctx.Err() != nil {
			return
		}
		r.log.Warn("plugin could not be registered", "socket", path, "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// register asks a plugin what it is, hands it to its handler and tells it what became of that.
func (r *Registry) register(ctx context.Context, path string) (Plugin, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := Dial(path)
	if err != nil {
		return Plugin{}, err
	}
	defer conn.Close()
	client := registerapi.NewRegistrationClient(conn)
	info, err := client.GetInfo(ctx, &registerapi.InfoRequest{})
	if err != nil {
		return Plugin{}, fmt.Errorf("failed to get plugin info using RPC GetInfo at socket %s, err: %w", path, err)
	}
	p := Plugin{Type: info.Type, Name: info.Name, Endpoint: info.Endpoint, Versions: info.SupportedVersions, Socket: path}
	if p.Endpoint == "" {
		p.Endpoint = path
	}
	h := r.handlers[p.Type]
	if h == nil {
		err = fmt.Errorf("no handler registered for plugin type: %s at socket %s", p.Type, path)
	} else {
		err = h.Register(ctx, p)
	}
	said := &registerapi.RegistrationStatus{PluginRegistered: err == nil}
	if err != nil {
		said.Error = err.Error()
	}
	if _, terr := client.NotifyRegistrationStatus(ctx, said); terr != nil && err == nil {
		h.Deregister(p)
		err = fmt.Errorf("failed to send registration status at socket %s, err: %w", path, terr)
	}
	return p, err
}

// Dial connects to a plugin's socket, at the first call and again whenever the connection is lost. The caller closes it.
func Dial(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
}
