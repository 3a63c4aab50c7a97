package volume

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
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/linux/mount"
	"coracle.dev/coracle/linux/podfs"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// resourceOf names what the tests store.
func resourceOf(o any) string {
	switch o.(type) {
	case *corev1.ConfigMap:
		return "configmaps"
	case *corev1.Secret:
		return "secrets"
	case *corev1.Pod:
		return "pods"
	case *corev1.Node:
		return "nodes"
	case *corev1.PersistentVolume:
		return "persistentvolumes"
	case *corev1.PersistentVolumeClaim:
		return "persistentvolumeclaims"
	}
	panic(fmt.Sprintf("%T", o))
}

func keyOf(o api.Object) store.Key {
	return store.Key{Resource: resourceOf(o), Namespace: o.GetNamespace(), Name: o.GetName()}
}

func newStore(t testing.TB, objs ...api.Object) store.Store {
	s := memory.New(store.Options{Stamp: func(any, store.Revision) {}})
	t.Cleanup(func() { s.Close() })
	for _, o := range objs {
		put(t, s, o)
	}
	return s
}

func put(t testing.TB, s store.Store, o api.Object) {
	t.Helper()
	if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: keyOf(o), Object: o, Expect: store.ExpectAny}}}); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, s store.Store, o api.Object) {
	t.Helper()
	if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: keyOf(o), Delete: true, Expect: store.ExpectAny}}}); err != nil {
		t.Fatal(err)
	}
}

// rig is a manager over a store, with a clock that the test moves.
type rig struct {
	*Manager
	t     testing.TB
	store store.Store
	root  string

	mu     sync.Mutex
	now    time.Time
	timers []timer
	tokens int
	fail   error
	wakes  chan types.UID
	warns  chan string
}

type timer struct {
	at time.Time
	c  chan time.Time
}

func newRig(t testing.TB, objs ...api.Object) *rig {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	r := &rig{t: t, store: newStore(t, objs...), root: filepath.Join(t.TempDir(), "pods"), now: t0,
		wakes: make(chan types.UID, 64), warns: make(chan string, 64)}
	t.Cleanup(func() {
		if err := mount.UnmountBelow(r.root); err != nil {
			t.Error(err)
		}
	})
	r.restart()
	return r
}

// restart makes a manager that knows nothing of what was before.
func (r *rig) restart() {
	r.Manager = New(Config{
		Root: r.root, Client: r.store, NodeName: "node-a", Log: slog.New(slog.DiscardHandler),
		Token: r.token,
		Wake:  func(uid types.UID) { r.wakes <- uid },
		Warn:  func(_ *corev1.Pod, _, msg string) { r.warns <- msg },
		Now: func() time.Time {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.now
		},
		After: func(d time.Duration) <-chan time.Time {
			r.mu.Lock()
			defer r.mu.Unlock()
			c := make(chan time.Time, 1)
			r.timers = append(r.timers, timer{r.now.Add(d), c})
			return c
		},
	})
}

func (r *rig) token(_ context.Context, q TokenRequest) (Token, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return Token{}, r.fail
	}
	r.tokens++
	return Token{Value: fmt.Sprintf("token-%d", r.tokens), Expires: r.now.Add(time.Duration(q.ExpirationSeconds) * time.Second)}, nil
}

// advance moves the clock and fires what is due.
func (r *rig) advance(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
	for _, tm := range r.timers {
		if !tm.at.After(r.now) {
			select {
			case tm.c <- r.now:
			default:
			}
		}
	}
}

// run starts the loop, and stops it at the end of the test.
func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
}

func (r *rig) prepare(pod *corev1.Pod) map[string]Mount {
	r.t.Helper()
	m, err := r.Prepare(context.Background(), pod)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

func (r *rig) unprepare(uid types.UID) {
	r.t.Helper()
	if err := r.Unprepare(context.Background(), uid); err != nil {
		r.t.Fatal(err)
	}
	if _, err := os.Stat(r.PodDir(uid)); !errors.Is(err, fs.ErrNotExist) {
		r.t.Fatalf("the pod's directory is left: %v", err)
	}
}

// podWith makes a pod whose one container mounts all its volumes.
func podWith(t *testing.T, volumes string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: meta("default", "web")}
	pod.UID = "uid-1"
	pod.Spec.ServiceAccountName = "robot"
	pod.Spec.Containers = []corev1.Container{{Name: "app"}}
	decode(t, volumes, &pod.Spec.Volumes)
	for _, v := range pod.Spec.Volumes {
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: v.Name, MountPath: "/" + v.Name})
	}
	return pod
}

func read(t *testing.T, m Mount, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(m.HostPath, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// eventually waits until a file has a content.
func eventually(t *testing.T, m Mount, name, want string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		data, err := os.ReadFile(filepath.Join(m.HostPath, name))
		if err == nil && string(data) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is %q (%v), want %q", name, data, err, want)
		}
		time.Sleep(time.Millisecond)
	}
}

func mode(t *testing.T, path string) (fs.FileMode, uint32) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode(), info.Sys().(*syscall.Stat_t).Gid
}

func TestEmptyDir(t *testing.T) {
	r := newRig(t, &corev1.Node{ObjectMeta: meta("", "node-a")})
	pod := podWith(t, `[{name: disk, emptyDir: {}}, {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}, {name: idle, emptyDir: {}}]`)
	pod.Spec.Containers[0].VolumeMounts = pod.Spec.Containers[0].VolumeMounts[:2]
	m := r.prepare(pod)
	if len(m) != 2 {
		t.Fatalf("a volume that nobody mounts was made: %v", m)
	}
	for _, name := range []string{"disk", "mem"} {
		if got, _ := mode(t, m[name].HostPath); got.Perm() != 0o777 {
			t.Errorf("%s has mode %v", name, got)
		}
		if err := os.WriteFile(filepath.Join(m[name].HostPath, "f"), []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(m["mem"].HostPath, "big"), make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("more than the limit: %v", err)
	}
	r.restart()
	m = r.prepare(pod)
	if read(t, m["disk"], "f") != "kept" || read(t, m["mem"], "f") != "kept" {
		t.Error("a restart lost content")
	}
	usages, err := r.Usages(context.Background(), pod.UID)
	if err != nil || len(usages) != 2 || usages[0].Volume != "disk" || usages[0].UsedBytes < 4 || !usages[0].LocalStorage ||
		usages[1].LocalStorage || usages[1].FS.CapacityBytes != 1<<20 {
		t.Errorf("%+v, %v", usages, err)
	}
	r.unprepare(pod.UID)
	r.unprepare(pod.UID)
}

func TestSizeLimit(t *testing.T) {
	r := newRig(t)
	pod := podWith(t, `[{name: v, emptyDir: {sizeLimit: 64Ki}}]`)
	m := r.prepare(pod)
	check := func(want string) {
		t.Helper()
		u, err := r.Usages(context.Background(), pod.UID)
		if err != nil || OverLimit(u, pod) != want {
			t.Fatalf("%q, %v", OverLimit(u, pod), err)
		}
	}
	if !HasSizeLimit(pod) {
		t.Fatal("the limit is not seen")
	}
	check("")
	if err := os.WriteFile(filepath.Join(m["v"].HostPath, "f"), make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	check(`Usage of EmptyDir volume "v" exceeds the limit "64Ki". `)
}

func TestFSGroup(t *testing.T) {
	r := newRig(t,
		&corev1.ConfigMap{ObjectMeta: meta("default", "cm"), Data: map[string]string{"a": "1"}},
		&corev1.Secret{ObjectMeta: meta("default", "sec"), Data: map[string][]byte{"s": []byte("2")}})
	pod := podWith(t, `[{name: e, emptyDir: {}}, {name: c, configMap: {name: cm}},
	  {name: s, secret: {secretName: sec, defaultMode: 256}}, {name: p, projected: {sources: [{serviceAccountToken: {path: token}}]}}]`)
	gid := int64(2345)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &gid}
	m := r.prepare(pod)
	for _, c := range []struct {
		path string
		perm fs.FileMode
	}{
		{m["e"].HostPath, 0o777 | fs.ModeSetgid | fs.ModeDir},
		{m["c"].HostPath, 0o777 | fs.ModeSetgid | fs.ModeDir},
		{m["c"].HostPath + "/a", 0o644},
		{m["s"].HostPath + "/s", 0o440},
		{m["p"].HostPath + "/token", 0o640},
		{m["p"].HostPath + "/..data", 0o755 | fs.ModeSetgid | fs.ModeDir},
	} {
		got, gid := mode(t, c.path)
		if got != c.perm || gid != 2345 {
			t.Errorf("%s: %v group %d, want %v", strings.TrimPrefix(c.path, r.root), got, gid, c.perm)
		}
	}
	first, _ := os.Readlink(filepath.Join(m["s"].HostPath, dataLink))
	r.restart()
	m = r.prepare(pod)
	if again, _ := os.Readlink(filepath.Join(m["s"].HostPath, dataLink)); again != first {
		t.Error("a restart wrote a secret anew that had not changed")
	}
}

func TestFSGroupChangePolicy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	file := filepath.Join(dir, "f")
	for _, err := range []error{os.Mkdir(dir, 0o700), os.WriteFile(file, nil, 0o600), os.Symlink("/etc/passwd", filepath.Join(dir, "l"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	policy := corev1.FSGroupChangeOnRootMismatch
	if err := ownTree(dir, 77, false, &policy); err != nil {
		t.Fatal(err)
	}
	if m, gid := mode(t, file); gid != 77 || m.Perm() != 0o660 {
		t.Fatalf("%v %d", m, gid)
	}
	if _, gid := mode(t, "/etc/passwd"); gid != 0 {
		t.Fatal("a link was followed")
	}
	if err := os.Chown(file, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := ownTree(dir, 77, false, &policy); err != nil {
		t.Fatal(err)
	}
	if _, gid := mode(t, file); gid != 0 {
		t.Fatal("the tree was walked although its root matches")
	}
	if err := ownTree(dir, 77, false, nil); err != nil {
		t.Fatal(err)
	}
	if _, gid := mode(t, file); gid != 77 {
		t.Fatal("the tree was not walked")
	}
}

func TestLiveUpdates(t *testing.T) {
	cm := &corev1.ConfigMap{ObjectMeta: meta("default", "cm"), Data: map[string]string{"a": "1"}}
	sec := &corev1.Secret{ObjectMeta: meta("default", "sec"), Data: map[string][]byte{"s": []byte("1")}}
	r := newRig(t, cm, sec)
	pod := podWith(t, `[{name: c, configMap: {name: cm}}, {name: s, secret: {secretName: sec}},
	  {name: d, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}},
	  {name: p, projected: {sources: [{configMap: {name: cm}}, {configMap: {name: later, optional: true}}]}}]`)
	put(t, r.store, pod)
	m := r.prepare(pod)
	if !m["c"].ReadOnly || !m["s"].ReadOnly {
		t.Error("volumes of objects can be written")
	}
	r.run()

	cm = cm.DeepCopy()
	cm.Data = map[string]string{"a": "2", "b": "3"}
	put(t, r.store, cm)
	eventually(t, m["c"], "a", "2")
	eventually(t, m["c"], "b", "3")
	eventually(t, m["p"], "b", "3")

	put(t, r.store, &corev1.ConfigMap{ObjectMeta: meta("default", "later"), Data: map[string]string{"late": "x"}})
	eventually(t, m["p"], "late", "x")

	sec = sec.DeepCopy()
	sec.Data = map[string][]byte{"s": []byte("2")}
	put(t, r.store, sec)
	eventually(t, m["s"], "s", "2")

	labelled := pod.DeepCopy()
	labelled.Labels = map[string]string{"x": "y"}
	put(t, r.store, labelled)
	eventually(t, m["d"], "labels", `x="y"`)

	// A source that goes leaves what it held, and says so.
	remove(t, r.store, sec)
	select {
	case msg := <-r.warns:
		if msg != `MountVolume.SetUp failed for volume "s" : secret "sec" not found` {
			t.Error(msg)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no warning")
	}
	if read(t, m["s"], "s") != "2" {
		t.Error("the content went with the source")
	}
	sec = sec.DeepCopy()
	sec.Data = map[string][]byte{"s": []byte("3")}
	put(t, r.store, sec)
	eventually(t, m["s"], "s", "3")

	r.unprepare(pod.UID)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.users) != 0 || len(r.pods) != 0 {
		t.Errorf("still registered: %v %v", r.users, r.pods)
	}
}

// TestChangesThatDoNotMatter: what no volume shows wakes nobody, the failing pod's own status above all.
func TestChangesThatDoNotMatter(t *testing.T) {
	pod := podWith(t, `[{name: d, downwardAPI: {items: [{path: l, fieldRef: {fieldPath: metadata.labels}}]}}]`)
	ready, labelled, resized := pod.DeepCopy(), pod.DeepCopy(), pod.DeepCopy()
	ready.Status.Phase = corev1.PodRunning
	ready.ResourceVersion = "7"
	labelled.Labels = map[string]string{"a": "b"}
	decode(t, `{limits: {cpu: 1}}`, &resized.Spec.Containers[0].Resources)
	node := &corev1.Node{ObjectMeta: meta("", "node-a")}
	beat, grown := node.DeepCopy(), node.DeepCopy()
	beat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
	decode(t, `{cpu: 4}`, &grown.Status.Allocatable)
	for _, c := range []struct {
		name     string
		was, now api.Object
		want     bool
	}{
		{"pod status", pod, ready, false}, {"pod labels", pod, labelled, true}, {"pod resources", pod, resized, true},
		{"node status", node, beat, false}, {"node allocatable", node, grown, true},
	} {
		ev := store.Event{Entry: &store.Entry{Key: keyOf(c.now), Object: c.now}, Prev: &store.Entry{Key: keyOf(c.was), Object: c.was}}
		if got := matters(&ev); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	never := podWith(t, `[{name: d, downwardAPI: {items: [{path: ns, fieldRef: {fieldPath: metadata.namespace}}]}}]`)
	if got := sourcesOf(never, wantedVolumes(never), "node-a"); len(got) != 0 {
		t.Errorf("what never changes is followed: %v", got)
	}
}

func TestSecretsStayInMemory(t *testing.T) {
	r := newRig(t, &corev1.Secret{ObjectMeta: meta("default", "sec"), Data: map[string][]byte{"s": []byte("1")}})
	pod := podWith(t, `[{name: s, secret: {secretName: sec}}, {name: p, projected: {sources: [{serviceAccountToken: {path: t}}]}}, {name: d, downwardAPI: {items: []}}]`)
	for name, m := range r.prepare(pod) {
		var st syscall.Statfs_t
		if err := syscall.Statfs(m.HostPath, &st); err != nil || st.Type != 0x01021994 {
			t.Errorf("%s lies on a file system of type %x, %v", name, st.Type, err)
		}
	}
}

func TestTokens(t *testing.T) {
	r := newRig(t)
	pod := podWith(t, `[{name: p, projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 1000}}]}}]`)
	put(t, r.store, pod)
	m := r.prepare(pod)
	r.run()
	eventually(t, m["p"], "token", "token-1")
	r.waitTimer(t0.Add(800 * time.Second))
	r.advance(799 * time.Second)
	r.prepare(pod)
	eventually(t, m["p"], "token", "token-1")
	r.advance(2 * time.Second)
	eventually(t, m["p"], "token", "token-2")

	// A refresh that fails keeps the old one and is tried again.
	r.mu.Lock()
	due := r.now.Add(800 * time.Second)
	r.fail = errors.New("no")
	r.mu.Unlock()
	r.waitTimer(due)
	r.advance(801 * time.Second)
	r.waitTimer(due.Add(time.Second + tokenRetry))
	eventually(t, m["p"], "token", "token-2")
	r.mu.Lock()
	r.fail = nil
	r.mu.Unlock()
	r.advance(tokenRetry)
	eventually(t, m["p"], "token", "token-3")
}

// waitTimer waits until the loop sleeps until a time.
func (r *rig) waitTimer(at time.Time) {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		r.mu.Lock()
		for _, tm := range r.timers {
			if tm.at.Equal(at) {
				r.mu.Unlock()
				return
			}
		}
		r.mu.Unlock()
		if time.Now().After(deadline) {
			r.t.Fatalf("nothing waits until %s", at)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestFailuresAndWake(t *testing.T) {
	r := newRig(t)
	r.fail = errors.New(`serviceaccounts "robot" not found`)
	pod := podWith(t, `[{name: e, emptyDir: {}}, {name: x, configMap: {name: cm}}, {name: tok, projected: {sources: [{serviceAccountToken: {path: t}}]}},
	  {name: data, persistentVolumeClaim: {claimName: c}}, {name: inline, csi: {driver: some.csi}}]`)
	m, err := r.Prepare(context.Background(), pod)
	if len(m) != 1 || m["e"].HostPath == "" {
		t.Errorf("made %v", m)
	}
	var got []string
	for _, f := range Failures(err) {
		got = append(got, f.Message)
	}
	want := []string{
		`MountVolume.SetUp failed for volume "x" : configmap "cm" not found`,
		`MountVolume.SetUp failed for volume "tok" : failed to fetch token: serviceaccounts "robot" not found`,
		`Unable to attach or mount volumes: unmounted volumes=[data inline tok x], unattached volumes=[], failed to process volumes=[data inline]: ` +
			`[error processing PVC default/c: failed to fetch PVC from API server: persistentvolumeclaims "c" not found, the CSI driver "some.csi" is not registered on this node]`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("messages\n%s", strings.Join(got, "\n"))
	}
	r.run()
	for _, o := range []api.Object{
		&corev1.ConfigMap{ObjectMeta: meta("default", "cm")},
		&corev1.PersistentVolumeClaim{ObjectMeta: meta("default", "c")},
	} {
		for len(r.wakes) > 0 {
			<-r.wakes
		}
		put(t, r.store, o)
		select {
		case uid := <-r.wakes:
			if uid != pod.UID {
				t.Errorf("woke %s", uid)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s woke nobody", o.GetName())
		}
	}
	r.unprepare(pod.UID)
}

func TestClaims(t *testing.T) {
	dir := t.TempDir()
	ns := "default"
	pv := func(name, spec string) *corev1.PersistentVolume {
		out := &corev1.PersistentVolume{ObjectMeta: meta("", name)}
		decode(t, spec, &out.Spec)
		return out
	}
	pvc := func(name, uid, volume, phase string) *corev1.PersistentVolumeClaim {
		out := &corev1.PersistentVolumeClaim{ObjectMeta: meta(ns, name)}
		out.UID = types.UID(uid)
		out.Spec.VolumeName = volume
		out.Status.Phase = corev1.PersistentVolumeClaimPhase(phase)
		return out
	}
	node := &corev1.Node{ObjectMeta: meta("", "node-a")}
	node.Labels = map[string]string{"kubernetes.io/hostname": "node-a"}
	affinity := func(host string) string {
		return `nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [` + host + `]}]}]}}`
	}
	r := newRig(t, node,
		pv("pv-host", `{claimRef: {uid: u1}, hostPath: {path: `+dir+`/made, type: DirectoryOrCreate}}`), pvc("host", "u1", "pv-host", "Bound"),
		pv("pv-local", `{claimRef: {uid: u2}, local: {path: `+dir+`}, `+affinity("node-a")+`}`), pvc("local", "u2", "pv-local", "Bound"),
		pv("pv-far", `{claimRef: {uid: u3}, local: {path: `+dir+`}, `+affinity("node-b")+`}`), pvc("far", "u3", "pv-far", "Bound"),
		pvc("pending", "u4", "", "Pending"), pvc("lost", "u5", "pv-gone", "Lost"),
		pv("pv-stolen", `{claimRef: {uid: other}, hostPath: {path: `+dir+`}}`), pvc("stolen", "u6", "pv-stolen", "Bound"),
		pv("pv-block", `{claimRef: {uid: u7}, volumeMode: Block, local: {path: `+dir+`}}`), pvc("block", "u7", "pv-block", "Bound"),
		pv("pv-csi", `{claimRef: {uid: u8}, csi: {driver: d, volumeHandle: h}}`), pvc("csi", "u8", "pv-csi", "Bound"),
		pvc("web-eph", "u9", "pv-host", "Bound"),
	)
	const unable = `Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to process volumes=[v]: `
	for _, c := range []struct{ volume, want string }{
		{`persistentVolumeClaim: {claimName: host}`, dir + "/made"},
		{`persistentVolumeClaim: {claimName: local, readOnly: true}`, dir + " ro"},
		{`persistentVolumeClaim: {claimName: far}`, `MountVolume.SetUp failed for volume "v" : volume node affinity check failed: no matching NodeSelectorTerms`},
		{`persistentVolumeClaim: {claimName: pending}`, unable + `error processing PVC default/pending: PVC is not bound`},
		{`persistentVolumeClaim: {claimName: lost}`, unable + `error processing PVC default/lost: PVC lost its underlying PersistentVolume "pv-gone"`},
		{`persistentVolumeClaim: {claimName: stolen}`, unable + `error processing PVC default/stolen: found PV object "pv-stolen" with an incorrect or missing ClaimRef`},
		{`persistentVolumeClaim: {claimName: block}`, unable + `error processing PVC default/block: volume v has volumeMode Block, but is specified in volumeMounts`},
		{`persistentVolumeClaim: {claimName: csi}`, unable + `the CSI driver "d" of persistent volume "pv-csi" is not registered on this node`},
		{`nfs: {server: s, path: /}`, unable + `the volume plugin "kubernetes.io/nfs" is not available on this node`},
	} {
		pod := podWith(t, `[{name: v, `+c.volume+`}]`)
		m, err := r.Prepare(context.Background(), pod)
		got := m["v"].HostPath
		if m["v"].ReadOnly {
			got += " ro"
		}
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %s\nwant %s", c.volume, got, c.want)
		}
		r.unprepare(pod.UID)
	}
	pod := podWith(t, `[{name: eph, ephemeral: {volumeClaimTemplate: {spec: {}}}}]`)
	if _, err := r.Prepare(context.Background(), pod); err == nil || !strings.Contains(err.Error(), "PVC default/web-eph was not created for pod default/web (pod is not owner)") {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/made"); err != nil {
		t.Error("removing a pod removed its persistent volume")
	}
}

func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	failed := func(path, what string) string {
		return "hostPath type check failed: " + path + " is not a " + what
	}
	for _, c := range []struct {
		kind corev1.HostPathType
		path string
		want string
	}{
		{"", dir + "/anything", ""},
		{corev1.HostPathDirectory, dir, ""},
		{corev1.HostPathDirectory, dir + "/none", failed(dir+"/none", "directory")},
		{corev1.HostPathDirectory, dir + "/file", failed(dir+"/file", "directory")},
		{corev1.HostPathDirectoryOrCreate, dir + "/a/b", ""},
		{corev1.HostPathDirectoryOrCreate, dir + "/file", "mkdir " + dir + "/file: not a directory"},
		{corev1.HostPathFile, dir + "/file", ""},
		{corev1.HostPathFile, dir, failed(dir, "file")},
		{corev1.HostPathFileOrCreate, dir + "/new", ""},
		{corev1.HostPathFileOrCreate, dir + "/none/new", "stat " + dir + "/none: no such file or directory"},
		{corev1.HostPathFileOrCreate, dir, failed(dir, "file")},
		{corev1.HostPathSocket, dir + "/sock", ""},
		{corev1.HostPathSocket, dir + "/file", failed(dir+"/file", "socket file")},
		{corev1.HostPathCharDev, "/dev/null", ""},
		{corev1.HostPathCharDev, dir + "/file", failed(dir+"/file", "character device")},
		{corev1.HostPathBlockDev, "/dev/null", failed("/dev/null", "block device")},
		{"Odd", dir, "Odd is an invalid volume type"},
	} {
		err := checkHostPath(&corev1.HostPathVolumeSource{Path: c.path, Type: &c.kind})
		if (err == nil) != (c.want == "") || (err != nil && err.Error() != c.want) {
			t.Errorf("%s %s: %v", c.kind, c.path, err)
		}
	}
}

func TestSubPath(t *testing.T) {
	r := newRig(t)
	pod := podWith(t, `[{name: e, emptyDir: {}}]`)
	m := r.prepare(pod)["e"]
	secret := filepath.Join(t.TempDir(), "secret")
	for _, err := range []error{
		os.WriteFile(secret, []byte("host"), 0o600),
		os.Mkdir(m.HostPath+"/dir", 0o700),
		os.WriteFile(m.HostPath+"/dir/f", []byte("one"), 0o600),
		os.Symlink("dir/f", m.HostPath+"/inside"),
		os.Symlink(secret, m.HostPath+"/outside"),
		os.Symlink("../../../..", m.HostPath+"/up"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	sub := func(path string) (string, error) {
		return r.SubPath(context.Background(), pod.UID, m, "e", "app", 0, path)
	}
	for _, path := range []string{"dir/f", "inside"} {
		at, err := sub(path)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(at); err != nil || string(data) != "one" {
			t.Fatalf("%s: %q %v", path, data, err)
		}
	}
	at, err := sub("new/deep")
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := mode(t, m.HostPath+"/new/deep"); got.Perm() != 0o777 {
		t.Errorf("a new directory has mode %v", got)
	}
	if err := os.WriteFile(at+"/x", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.HostPath + "/new/deep/x"); err != nil {
		t.Error("the mount shows something else")
	}
	for _, path := range []string{"outside", "up", "up/etc", "outside/x"} {
		if _, err := sub(path); err == nil || err.Error() != fmt.Sprintf("subpath %q not within volume path %q", path, m.HostPath) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"../x", "/etc", "a/../../b", ""} {
		if _, err := sub(path); err == nil {
			t.Errorf("%q was taken", path)
		}
	}
	if _, err := sub("dir/f"); err != nil {
		t.Fatal(err)
	}
	r.unprepare(pod.UID)
	if data, err := os.ReadFile(secret); err != nil || string(data) != "host" {
		t.Error("the host's file was touched")
	}
}

// TestTearDownKeepsForeignMounts: what somebody mounted inside a volume is unmounted, never
// emptied.
func TestTearDownKeepsForeignMounts(t *testing.T) {
	r := newRig(t)
	pod := podWith(t, `[{name: e, emptyDir: {}}]`)
	m := r.prepare(pod)["e"]
	precious := t.TempDir()
	inner := m.HostPath + "/a/b"
	for _, err := range []error{
		os.WriteFile(precious+"/f", []byte("kept"), 0o600),
		os.MkdirAll(inner, 0o700),
		mount.Bind(precious, inner),
		podfs.Tmpfs(inner, podfs.TmpfsOptions{Mode: 0o700}), // on top of it
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r.unprepare(pod.UID)
	if data, err := os.ReadFile(precious + "/f"); err != nil || string(data) != "kept" {
		t.Fatal("a foreign mount was emptied")
	}
}

func TestOrphans(t *testing.T) {
	r := newRig(t, &corev1.Secret{ObjectMeta: meta("default", "sec"), Data: map[string][]byte{"s": []byte("1")}})
	for _, uid := range []types.UID{"uid-1", "uid-2", "uid-3"} {
		pod := podWith(t, `[{name: s, secret: {secretName: sec}}, {name: m, emptyDir: {medium: Memory}}]`)
		pod.UID = uid
		r.prepare(pod)
	}
	r.restart()
	gone, err := r.Orphans(context.Background(), func(uid types.UID) bool { return uid == "uid-2" })
	if err != nil || fmt.Sprint(gone) != "[uid-1 uid-3]" {
		t.Fatalf("%v %v", gone, err)
	}
	if mounted, err := podfs.Mounted(r.PodDir("uid-2") + "/volumes/kubernetes.io~empty-dir/m"); err != nil || !mounted {
		t.Fatalf("the kept pod lost its volume: %v", err)
	}
	if _, err := os.Stat(r.memory.podDir("uid-2") + "/volumes/kubernetes.io~secret/s/s"); err != nil {
		t.Fatal(err)
	}
	r.unprepare("uid-2")
	// As a crash leaves it: mounted, and nobody there.
	if err := r.memory.enter("x"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.memory.podDir("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Orphans(context.Background(), func(types.UID) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(r.root); err != nil || len(entries) != 0 {
		t.Fatalf("left: %v %v", entries, err)
	}
	for _, uid := range []types.UID{"", "..", "a/b", ".", ".memory"} {
		if err := r.Unprepare(context.Background(), uid); err == nil {
			t.Errorf("%q was taken for a pod", uid)
		}
	}
}

func TestImageVolumes(t *testing.T) {
	r := newRig(t)
	pod := podWith(t, `[{name: i, image: {reference: "a/b:1"}}]`)
	if m := r.prepare(pod)["i"]; m.Image != "a/b:1" || !m.ReadOnly || m.HostPath != "" {
		t.Fatalf("%+v", m)
	}
	r.cfg.Image = func(context.Context, *corev1.Pod, *corev1.Volume) (string, error) {
		return "", errors.New("pull failed")
	}
	if _, err := r.Prepare(context.Background(), pod); err == nil || err.Error() != `MountVolume.SetUp failed for volume "i" : pull failed` {
		t.Fatal(err)
	}
}

// TestManyPods holds the loop to following many pods at once while they come and go.
func TestManyPods(t *testing.T) {
	cm := &corev1.ConfigMap{ObjectMeta: meta("default", "cm"), Data: map[string]string{"a": "0"}}
	r := newRig(t, cm)
	r.run()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			pod := podWith(t, `[{name: c, configMap: {name: cm}}]`)
			pod.UID = types.UID(fmt.Sprint("pod-", i))
			for range 5 {
				m, err := r.Prepare(context.Background(), pod)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.ReadFile(m["c"].HostPath + "/a"); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
				if err := r.Unprepare(context.Background(), pod.UID); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 50 {
		next := cm.DeepCopy()
		next.Data["a"] = fmt.Sprint(i)
		put(t, r.store, next)
	}
	wg.Wait()
	if entries, err := os.ReadDir(r.root); err != nil || len(entries) != 0 {
		t.Fatalf("left: %v %v", entries, err)
	}
}
