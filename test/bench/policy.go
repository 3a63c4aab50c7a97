package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/linux/namespace"
	"coracle.dev/coracle/linux/nft/filter"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/network/policy"
	"coracle.dev/coracle/store"
	inmemory "coracle.dev/coracle/store/memory"
)

// policies measures network policies between two pods of one node: what a new flow costs with many policies that select the very
// pod, and how long after its commit to the store a policy holds for packets.
func (b *bench) policies() (err error) {
	if os.Getuid() != 0 {
		return errors.New("needs root")
	}
	p, err := newPolicyBench(fmt.Sprintf("%04x", os.Getpid()&0xffff))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	for _, count := range []int{0, 10, 1000} {
		took, err := p.load(count)
		if err != nil {
			return err
		}
		each, err := p.flows()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%d network policies of one pod", count)
		b.add(name+": first packet of a flow and its answer", each.String(), "flat")
		if count > 0 {
			b.add(name+": all of them at once, until they are in the kernel", round(took), "")
		}
		allow, cut, err := p.changes()
		if err != nil {
			return err
		}
		b.add(name+": one more allows, until the first packet passes, p50 / p99", round(at(allow, 50))+" / "+round(at(allow, 99)), "<= 100 ms")
		b.add(name+": it goes, until the last packet of an open flow has passed, p50 / p99", round(at(cut, 50))+" / "+round(at(cut, 99)), "<= 100 ms")
	}
	return nil
}

type policyBench struct {
	dir, table, instance string
	store                store.Store
	enforcer             *policy.Enforcer
	stop                 func()
	paths                [2]string
	addrs                [2]netip.Addr
	server               int
	echo                 sync.WaitGroup
}

const policyPort = 7777

func newPolicyBench(instance string) (*policyBench, error) {
	dir, err := os.MkdirTemp("", "coracle-bench")
	if err != nil {
		return nil, err
	}
	p := &policyBench{dir: dir, table: "coracle_bench_" + instance, instance: instance, server: -1, stop: func() {}}
	if err := p.open(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *policyBench) open() error {
	if _, err := link.EnableForwarding(); err != nil {
		return err
	}
	p.store = inmemory.New(store.Options{Stamp: func(any, store.Revision) {}})
	if err := p.put(client.Namespaces.Name, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bench"}}); err != nil {
		return err
	}
	pods, err := network.NewPods(p.instance, 0)
	if err != nil {
		return err
	}
	pods.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.253.77.0/28")})
	var locals []policy.Local
	for i, name := range []string{"client", "server"} {
		if err := namespace.Pin(filepath.Join(p.dir, name), []namespace.Type{namespace.Net}, nil); err != nil {
			return err
		}
		p.paths[i] = filepath.Join(p.dir, name, string(namespace.Net))
		addrs, err := pods.Attach(context.Background(), name, p.paths[i], name)
		if err != nil {
			return err
		}
		p.addrs[i] = addrs[0]
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: name, Labels: map[string]string{"app": name}},
			Spec:   corev1.PodSpec{NodeName: "bench"},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: addrs[0].String()}}}}
		if err := p.put(client.Pods.Name, pod); err != nil {
			return err
		}
		locals = append(locals, policy.Local{Sandbox: name, Pod: pod, Addrs: addrs})
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if p.enforcer, err = policy.Start(policy.Config{Client: p.store, NodeName: "bench", Table: p.table, Log: log}, locals...); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = p.enforcer.Run(ctx) })
	p.stop = func() { cancel(); running.Wait() }
	return p.serve()
}

// serve answers every datagram that the server gets.
func (p *policyBench) serve() error {
	var err error
	if p.server, err = p.socket(1); err != nil {
		return err
	}
	if err := unix.Bind(p.server, &unix.SockaddrInet4{Port: policyPort}); err != nil {
		return err
	}
	p.echo.Go(func() {
		buf := make([]byte, 64)
		for {
			n, from, err := unix.Recvfrom(p.server, buf, 0)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || from == nil {
				return
			}
			_ = unix.Sendto(p.server, buf[:n], 0, from)
		}
	})
	return nil
}

// socket makes a datagram socket in a pod, whose reads end after a while.
func (p *policyBench) socket(pod int) (fd int, err error) {
	err = namespace.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	}, p.paths[pod])
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 2000})
	}
	return fd, err
}

func (p *policyBench) close() error {
	p.stop()
	if p.server >= 0 {
		_ = unix.Shutdown(p.server, unix.SHUT_RDWR)
		p.echo.Wait()
		unix.Close(p.server)
	}
	errs := []error{filter.Delete(p.table), network.RemoveAll(p.instance)}
	for _, path := range p.paths {
		if path != "" {
			errs = append(errs, namespace.Unpin(path))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(p.dir))...)
}

func (p *policyBench) put(resource string, obj metav1.Object) error {
	key := store.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	_, _, err := p.store.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: obj, Expect: store.ExpectAny}}})
	return err
}

// load has count policies select the server, none of which allows what is measured, and one that does if there are any.
func (p *policyBench) load(count int) (time.Duration, error) {
	var txn store.Txn
	for i := range count {
		port := intstr.FromInt32(int32(10000 + i))
		np := p.policy(fmt.Sprint("p", i), &port)
		txn.Ops = append(txn.Ops, store.Op{Object: np, Expect: store.ExpectAny,
			Key: store.Key{Resource: client.NetworkPolicies.Name, Namespace: np.Namespace, Name: np.Name}})
	}
	began := time.Now()
	if count > 0 {
		if _, _, err := p.store.Commit(context.Background(), txn); err != nil {
			return 0, err
		}
		if err := p.put(client.NetworkPolicies.Name, p.policy("open", nil)); err != nil {
			return 0, err
		}
	}
	took, err := p.until(began, true)
	return took, err
}

// policy lets the client reach a port of the server, or all of them.
func (p *policyBench) policy(name string, port *intstr.IntOrString) *networkingv1.NetworkPolicy {
	rule := networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}}}}
	if port != nil {
		rule.Ports = []networkingv1.NetworkPolicyPort{{Port: port}}
	}
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: name},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{rule}}}
}

// flows is what one new flow costs: a datagram from a port that was not used before, and its answer.
func (p *policyBench) flows() (time.Duration, error) {
	const count = 5000
	var all []time.Duration
	for range 3 { // the best of three, as the machine has other things to do too
		fd, err := p.socket(0)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		for i := range count {
			to := &unix.SockaddrInet4{Addr: p.addrs[1].As4(), Port: policyPort}
			if i > 0 { // another port: what was a flow before is none
				unix.Close(fd)
				if fd, err = p.socket(0); err != nil {
					return 0, err
				}
			}
			if err := unix.Sendto(fd, []byte("?"), 0, to); err != nil {
				return 0, err
			}
			if _, _, err := unix.Recvfrom(fd, make([]byte, 8), 0); err != nil && !errors.Is(err, unix.EAGAIN) {
				return 0, err
			}
		}
		unix.Close(fd)
		all = append(all, time.Since(began)/count)
	}
	return slices.Min(all).Round(100 * time.Nanosecond), nil
}

// patience is how long a change may take before the bench gives up.
const policyPatience = 30 * time.Second

// until sends without a pause and says how long after began the first answer came, or the last one before a long silence.
func (p *policyBench) until(began time.Time, passes bool) (time.Duration, error) {
	fd, err := p.socket(0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return p.watch(fd, began, passes)
}

const silence = 50 // reads that time out, of 2 ms each

func (p *policyBench) watch(fd int, began time.Time, passes bool) (time.Duration, error) {
	last, quiet := began, 0
	to := &unix.SockaddrInet4{Addr: p.addrs[1].As4(), Port: policyPort}
	for time.Since(began) < policyPatience {
		_ = unix.Sendto(fd, []byte("?"), 0, to)
		n, _, err := unix.Recvfrom(fd, make([]byte, 8), 0)
		switch {
		case n > 0 && err == nil && passes:
			return time.Since(began), nil
		case n > 0 && err == nil:
			last, quiet = time.Now(), 0
		default:
			if quiet++; !passes && quiet > silence {
				return last.Sub(began), nil
			}
		}
	}
	return 0, errors.New("a change of a network policy has no effect")
}

// changes has one policy come, which allows, and go again.
func (p *policyBench) changes() (allow, cut []time.Duration, err error) {
	closed := p.policy("closed", nil)
	closed.Spec.Ingress = nil
	if err := p.put(client.NetworkPolicies.Name, closed); err != nil {
		return nil, nil, err
	}
	fd, err := p.socket(0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	for range 40 {
		began := time.Now()
		if err := p.remove("open"); err != nil {
			return nil, nil, err
		}
		took, err := p.watch(fd, began, false)
		if err != nil {
			return nil, nil, err
		}
		cut = append(cut, took)
		began = time.Now()
		if err := p.put(client.NetworkPolicies.Name, p.policy("open", nil)); err != nil {
			return nil, nil, err
		}
		if took, err = p.watch(fd, began, true); err != nil {
			return nil, nil, err
		}
		allow = append(allow, took)
	}
	slices.Sort(allow)
	slices.Sort(cut)
	return allow, cut[1:], p.remove("closed") // the first was not open yet, perhaps
}

func (p *policyBench) remove(name string) error {
	key := store.Key{Resource: client.NetworkPolicies.Name, Namespace: "bench", Name: name}
	_, _, err := p.store.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Delete: true, Expect: store.ExpectAny}}})
	return err
}
