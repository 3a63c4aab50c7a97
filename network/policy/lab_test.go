package policy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/linux/namespace"
	"coracle.dev/coracle/linux/nft/filter"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/network/networktest"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

const (
	labNode  = "here"
	labTable = "coracle_test_policy"
	icmpEcho = 1
)

// labPorts are the ports on which every pod of a lab answers, over TCP, UDP and SCTP.
var labPorts = []uint16{80, 81, 8080}

// lab is a node with pods in network namespaces, an Enforcer, and the store that it reads.
type lab struct {
	t        testing.TB
	store    store.Store
	pods     *network.Pods
	enforcer *Enforcer
	members  map[string]*member // by "namespace/name"
	order    []string
	sctp     bool
	stop     func()
}

type member struct {
	pod   *corev1.Pod
	path  string
	addrs []netip.Addr
}

// newLab makes a lab in which every pod has an address of each range.
func newLab(t *testing.T, name string, ranges ...string) *lab {
	t.Helper()
	pods, err := network.NewPods(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	var prefixes []netip.Prefix
	for _, r := range ranges {
		prefixes = append(prefixes, netip.MustParsePrefix(r))
	}
	pods.SetRanges(prefixes)
	if _, err := link.EnableForwarding(); err != nil {
		t.Fatal(err)
	}
	if len(ranges) > 1 {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := &lab{t: t, pods: pods, members: map[string]*member{}}
	l.store = memory.New(store.Options{Stamp: func(any, store.Revision) {}})
	host, err := link.HostAddr()
	if err != nil {
		t.Fatal(err)
	}
	l.put("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: labNode},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: host.String()}}}})
	l.start(labTable + name)
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP); err == nil {
		l.sctp = true
		unix.Close(fd)
	}
	t.Cleanup(func() {
		l.stop()
		if err := filter.Delete(labTable + name); err != nil {
			t.Error(err)
		}
	})
	return l
}

// start makes the Enforcer; a second call is a restart of the program.
func (l *lab) start(table string) {
	l.t.Helper()
	var locals []Local
	for name, m := range l.members {
		locals = append(locals, Local{Sandbox: name, Pod: m.pod, Addrs: m.addrs})
	}
	e, err := Start(Config{Client: l.store, NodeName: labNode, Table: table, Log: slog.New(slog.DiscardHandler)}, locals...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.enforcer = e
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := e.Run(ctx); err != nil {
			l.t.Error(err)
		}
	})
	l.stop = func() { cancel(); done.Wait() }
}

func (l *lab) put(resource string, obj metav1.Object) {
	l.t.Helper()
	key := store.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if _, _, err := l.store.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: obj, Expect: store.ExpectAny}}}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) remove(resource, namespace, name string) {
	l.t.Helper()
	key := store.Key{Resource: resource, Namespace: namespace, Name: name}
	if _, _, err := l.store.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Delete: true, Expect: store.ExpectAny}}}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) namespace(name string, labels map[string]string) {
	l.put("namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
}

// pod starts a pod, as the node does: verdicts, then the link, then what listens, then the status.
func (l *lab) pod(space, name string, labels map[string]string, ports ...corev1.ContainerPort) *member {
	l.t.Helper()
	id := space + "/" + name
	m := &member{pod: &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: space, Name: name, Labels: labels, UID: types.UID(id)},
		Spec:       corev1.PodSpec{NodeName: labNode, Containers: []corev1.Container{{Name: "c", Ports: ports}}}}}
	l.put("pods", m.pod)
	t := l.t.(*testing.T)
	m.path = pinned(t)
	l.pods.BeforeUp(func(_ context.Context, sandbox string, addrs []netip.Addr) error {
		if sandbox != id {
			return nil
		}
		return l.enforcer.Admit(Local{Sandbox: id, Pod: m.pod, Addrs: addrs})
	})
	var err error
	if m.addrs, err = l.pods.Attach(context.Background(), id, m.path, name); err != nil {
		l.t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.pods.Detach(context.Background(), id, m.path); err != nil {
			t.Error(err)
		}
	})
	networktest.Inside(t, m.path, func() { l.listen(t) })
	running := m.pod.DeepCopy()
	running.Status.Phase = corev1.PodRunning
	for _, a := range m.addrs {
		running.Status.PodIPs = append(running.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	m.pod = running
	l.put("pods", running)
	l.members[id] = m
	l.order = append(l.order, id)
	return m
}

// pinned makes a network namespace for the test.
func pinned(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := namespace.Pin(dir, []namespace.Type{namespace.Net}, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, string(namespace.Net))
	t.Cleanup(func() {
		if err := namespace.Unpin(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// settled waits until the kernel has all that is in the store.
func (l *lab) settled() {
	l.t.Helper()
	l.enforcer.mu.Lock()
	defer l.enforcer.mu.Unlock()
	if err := l.enforcer.sync(); err != nil {
		l.t.Fatal(err)
	}
}

// listen answers on all ports in the namespace of the thread. The sockets end with the test.
func (l *lab) listen(t *testing.T) {
	for _, port := range labPorts {
		for _, proto := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
			if proto == unix.IPPROTO_SCTP && !l.sctp {
				continue
			}
			fd, err := serve(proto, port)
			if err != nil {
				t.Errorf("listen on %d of protocol %d: %v", port, proto, err)
				return
			}
			t.Cleanup(func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR); unix.Close(fd) })
			if proto == unix.IPPROTO_UDP {
				go echo(fd)
			} else {
				go accepting(fd)
			}
		}
	}
}

func kindOf(proto int) int {
	if proto == unix.IPPROTO_UDP {
		return unix.SOCK_DGRAM
	}
	return unix.SOCK_STREAM
}

func serve(proto int, port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET6, kindOf(proto)|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return 0, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)}); err != nil {
		return 0, err
	}
	if proto != unix.IPPROTO_UDP {
		return fd, unix.Listen(fd, 128)
	}
	// Shutting down does not wake a datagram socket everywhere.
	return fd, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
}

func accepting(fd int) {
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return
		}
		go func() { // echoes until the other side ends
			defer unix.Close(c)
			_ = unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
			buf := make([]byte, 64)
			for {
				n, err := unix.Read(c, buf)
				if n <= 0 || err != nil {
					return
				}
				if _, err := unix.Write(c, buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

func echo(fd int) {
	buf := make([]byte, 64)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue
		case err != nil || from == nil:
			return
		}
		_ = unix.Sendto(fd, buf[:n], 0, from)
	}
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

func domain(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// How long a probe waits for an answer that is expected, or that is not.
const (
	patience   = 20 * time.Second
	impatience = 150 * time.Millisecond
)

// reach says whether an answer comes from inside of a namespace. It waits long if one is expected.
func (l *lab) reach(path string, to netip.Addr, proto uint8, port uint16, expected bool) bool {
	wait := impatience
	if expected {
		wait = patience
	}
	var fd int
	var err error
	networktest.Inside(l.t.(*testing.T), path, func() { fd, err = open(to, proto) })
	if err != nil {
		l.t.Error(err)
		return false
	}
	defer unix.Close(fd)
	ok, err := ask(fd, to, proto, port, time.Now().Add(wait))
	if err != nil {
		l.t.Error(err)
	}
	return ok
}

func open(to netip.Addr, proto uint8) (int, error) {
	switch {
	case proto != icmpEcho:
		return unix.Socket(domain(to), kindOf(int(proto))|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(proto))
	case to.Is4():
		return unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	}
	return unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
}

func ask(fd int, to netip.Addr, proto uint8, port uint16, until time.Time) (bool, error) {
	if proto == icmpEcho {
		return ping(fd, to, until)
	}
	err := unix.Connect(fd, sockaddr(to, port))
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return false, fmt.Errorf("connect to %s:%d of %d: %w", to, port, proto, err)
	}
	if proto == unix.IPPROTO_UDP {
		for time.Now().Before(until) {
			if _, err := unix.Write(fd, []byte("?")); err != nil && !errors.Is(err, unix.EPERM) {
				return false, nil
			}
			if ready(fd, unix.POLLIN, earlier(until, time.Now().Add(time.Second))) {
				n, err := unix.Read(fd, make([]byte, 8))
				return n > 0 && err == nil, nil
			}
		}
		return false, nil
	}
	if !ready(fd, unix.POLLOUT, until) {
		return false, nil
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return code == 0 && err == nil, err
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ready waits until something can be done with a socket.
func ready(fd int, events int16, until time.Time) bool {
	for {
		left := time.Until(until)
		if left <= 0 {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n > 0
	}
}

// ping sends echo requests until one is answered.
func ping(fd int, to netip.Addr, until time.Time) (bool, error) {
	request, reply, skip := byte(8), byte(0), 20 // the IPv4 header
	if to.Is6() {
		request, reply, skip = 128, 129, 0
	}
	id := uint16(fd)<<8 ^ uint16(time.Now().UnixNano())
	message := []byte{request, 0, 0, 0, 0, 0, 0, 1}
	binary.BigEndian.PutUint16(message[4:], id)
	if to.Is4() {
		sum := uint32(0)
		for i := 0; i < len(message); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(message[i:]))
		}
		sum = sum&0xffff + sum>>16
		binary.BigEndian.PutUint16(message[2:], ^uint16(sum))
	}
	buf := make([]byte, 256)
	for time.Now().Before(until) {
		if err := unix.Sendto(fd, message, 0, sockaddr(to, 0)); err != nil {
			return false, fmt.Errorf("ping %s: %w", to, err)
		}
		again := earlier(until, time.Now().Add(time.Second))
		for ready(fd, unix.POLLIN, again) {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err == nil && n >= skip+8 && buf[skip] == reply && binary.BigEndian.Uint16(buf[skip+4:]) == id {
				return true, nil
			}
		}
	}
	return false, nil
}

// expectation is one case of a truth table.
type expectation struct {
	from, to string // members
	proto    uint8
	port     uint16
	v6       bool
	want     bool
}

func (x expectation) String() string {
	return fmt.Sprintf("%s -> %s proto %d port %d v6 %v", x.from, x.to, x.proto, x.port, x.v6)
}

// probing is how many probes wait at once.
const probing = 64

// check sends packets for each case and compares.
func (l *lab) check(name string, cases []expectation) {
	l.t.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, probing)
	for _, x := range cases {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if got := l.reach(l.members[x.from].path, l.members[x.to].addr(x.v6), x.proto, x.port, x.want); got != x.want {
				l.t.Errorf("%s: %s: reached %v, want %v", name, x, got, x.want)
			}
		})
	}
	wg.Wait()
}

func (m *member) addr(v6 bool) netip.Addr {
	for _, a := range m.addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// protocols are those that the kernel of the lab has.
func (l *lab) protocols() []uint8 {
	if l.sctp {
		return []uint8{protoTCP, protoUDP, protoSCTP}
	}
	return []uint8{protoTCP, protoUDP}
}

func (l *lab) policy(np *networkingv1.NetworkPolicy) {
	l.put("networkpolicies.networking.k8s.io", np)
}

func (l *lab) clusterPolicy(cnp *policyv1alpha2.ClusterNetworkPolicy) { l.put(ClusterPolicies, cnp) }

// clear removes every policy.
func (l *lab) clear() {
	s := l.store.Snapshot()
	for _, resource := range []string{"networkpolicies.networking.k8s.io", ClusterPolicies} {
		for e := range s.List(resource, "", nil) {
			l.remove(resource, e.Namespace, e.Name)
		}
	}
}
