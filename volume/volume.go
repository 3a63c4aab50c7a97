package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
)

// Config is what a Manager needs.
type Config struct {
	// Root holds one directory a pod, named by its UID: "<data>/pods". It must be
	// in the mount namespace in which containers are made. Beside them, ".memory" is a file system in
	// memory while there are pods with secrets, tokens or the like.
	Root string
	// Client gives the objects that volumes are made of.
	Client client.Reader
	// NodeName is this node's name; its allocatable resources are the defaults of resource
	// fields.
	NodeName string
	// Token issues a service account token that is bound to a pod. It is called with a
	// deadline. Nil: volumes with a serviceAccountToken source fail.
	Token func(ctx context.Context, r TokenRequest) (Token, error)
	// Certificate creates a request for a certificate of a pod and returns it as it was stored. It is called with a
	// deadline. Nil: volumes with a podCertificate source fail.
	Certificate func(ctx context.Context, r *certificatesv1.PodCertificateRequest) (*certificatesv1.PodCertificateRequest, error)
	// Image makes the image of an image volume present, by its pull policy, and returns the name or
	// ID under which the container runtime can mount it. It is called again on each Prepare and may
	// take long. Nil: the volume's reference is returned as it stands, and the node agent sees to the image.
	Image func(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume) (string, error)
	// Wake tells that something changed on which an earlier Prepare of this pod failed, so that
	// it is worth another try. It must not block. May be nil.
	Wake func(uid types.UID)
	// Warn reports that a volume of a running pod could not follow its source; reason and
	// message are those of an event. It must not block. May be nil.
	Warn func(pod *corev1.Pod, reason, message string)
	Log  *slog.Logger
	// Now is the clock of token refresh; After waits on it. Both have the real
	// clock as their default.
	Now   func() time.Time
	After func(d time.Duration) <-chan time.Time
}

// TokenRequest asks for a service account token (authentication.k8s.io/v1 TokenRequest).
type TokenRequest struct {
	Namespace, ServiceAccount string
	// Audience is empty for the API server's own.
	Audience          string
	ExpirationSeconds int64
	// PodName and PodUID name the pod that the token is bound to.
	PodName string
	PodUID  types.UID
}

// Token is an issued service account token. Value is a secret.
type Token struct {
	Value   string
	Expires time.Time
}

// Mount is where a volume's content lies on the node.
type Mount struct {
	// HostPath is an absolute path: a directory, or whatever a hostPath volume names. Empty for
	// image volumes.
	HostPath string
	// Image is the image whose files an image volume shows; the container runtime mounts it.
	Image string
	// ReadOnly volumes must be mounted read-only into each container, whatever the
	// volumeMount says.
	ReadOnly bool
	// Block tells that HostPath is a block device, for volumeDevices (volumeMode: Block).
	Block bool
	// Medium is that of an emptyDir ("", "Memory", "HugePages...").
	Medium corev1.StorageMedium
}

// Failure says why one volume, or the set of them, could not be made ready.
type Failure struct {
	// Volume is the volume's name in the pod.
	Volume string
	// Message is the text of the event that upstream records.
	Message string
	// Err is the cause.
	Err error
}

// Error collects the failures of one Prepare. Each is to be recorded as an event
// of type Warning and reason FailedMount.
type Error struct {
	Failures []Failure
}

// Reason is the reason of the events that failures are recorded as.
const Reason = "FailedMount"

// Error joins the messages.
func (e *Error) Error() string {
	msgs := make([]string, len(e.Failures))
	for i, f := range e.Failures {
		msgs[i] = f.Message
	}
	return strings.Join(msgs, "; ")
}

// Unwrap gives the causes.
func (e *Error) Unwrap() []error {
	errs := make([]error, 0, len(e.Failures))
	for _, f := range e.Failures {
		errs = append(errs, f.Err)
	}
	return errs
}

// Failures gives the failures that an error of Prepare holds; an error of another
// kind becomes one failure without a volume.
func Failures(err error) []Failure {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Failures
	}
	return []Failure{{Message: err.Error(), Err: err}}
}

// Manager makes and unmakes the volumes of pods of one node. It is safe for concurrent use.
type Manager struct {
	cfg Config
	// memory holds the volumes that never reach a disk.
	memory ramDir

	mu sync.Mutex // guards what follows; may be taken under podState.mu
	// pods are those prepared and not yet unprepared.
	pods map[types.UID]*podState
	// users are the pods that read an object, by the object's key.
	users map[source]map[types.UID]struct{}
	// due are the times at which tokens are to be refreshed.
	due dueTimes
	// tokens wakes Run when the earliest of them moved.
	tokens chan struct{}
}

// podState is what is known of one pod's volumes.
type podState struct {
	uid types.UID

	mu sync.Mutex // guards what follows; at most one goroutine works on a pod's volumes
	// pod is the latest version seen.
	pod *corev1.Pod
	// made are the volumes that stand.
	made map[string]Mount
	// tokens are those in use, by volume and path.
	tokens map[tokenKey]heldToken
	// certificates are those in use or asked for.
	certificates map[certificateKey]*heldCertificate
	// failed is set while the last Prepare failed.
	failed bool
	// gone is set once Unprepare has run: a refresh that comes late does nothing.
	gone bool
	// again tells a Prepare that waits for a certificate that something changed (not guarded).
	again chan struct{}
	// sources are the objects that this pod is registered for (guarded by Manager.mu).
	sources map[source]struct{}
}

// New makes a Manager. It touches nothing until it is used.
func New(cfg Config) *Manager {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.After == nil {
		cfg.After = time.After
	}
	return &Manager{
		cfg:    cfg,
		memory: ramDir{dir: filepath.Join(cfg.Root, memoryName)},
		pods:   map[types.UID]*podState{},
		users:  map[source]map[types.UID]struct{}{},
		tokens: make(chan struct{}, 1),
	}
}

// PodDir is the directory of a pod. The manager owns "volumes" and "volume-subpaths" in it;
// the rest is the node agent's.
func (m *Manager) PodDir(uid types.UID) string {
	return filepath.Join(m.cfg.Root, string(uid))
}

// Prepare makes all volumes ready that the pod's containers mount, and returns them by volume
// name. It is idempotent, also over restarts of the program: volumes that stand are kept
// with their content, and those with sources are brought up to date. A volume that cannot be made
// does not stop the others; the error is then an *Error, and what was made is returned
// beside it. Volumes that no container mentions are left out, as upstream does.
//
// A pod whose Prepare failed may be tried again after a back-off, and should be when Config.Wake
// names it.
func (m *Manager) Prepare(ctx context.Context, pod *corev1.Pod) (map[string]Mount, error) {
	if err := checkUID(pod.UID); err != nil {
		return nil, err
	}
	wanted := wantedVolumes(pod)
	images, imageErrs := m.prepareImages(ctx, pod, wanted)

	p := m.enter(pod)
	mounts, err := m.prepare(ctx, p, pod, wanted, images, imageErrs)
	// Signers are quick as a rule: it is not worth an event that they have not answered in no time.
	var patience <-chan time.Time
	for errors.Is(err, errNotIssued) {
		if patience == nil {
			patience = m.cfg.After(issuePatience)
		}
		select {
		case <-p.again:
			mounts, err = m.prepare(ctx, p, pod, wanted, images, imageErrs)
			continue
		case <-patience:
		case <-ctx.Done():
		}
		break
	}
	return mounts, err
}

// prepare is one attempt of Prepare.
func (m *Manager) prepare(ctx context.Context, p *podState, pod *corev1.Pod, wanted []wantedVolume,
	images map[string]Mount, imageErrs map[string]error) (map[string]Mount, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return nil, fmt.Errorf("pod %s is being torn down", pod.UID)
	}
	p.pod = pod
	// Sources first, the snapshot after: a change in between is then seen by Run.
	m.follow(p, sourcesOf(pod, wanted, m.cfg.NodeName))
	snap := m.cfg.Client.Snapshot()
	m.follow(p, claimSources(snap, pod, wanted, m.cfg.NodeName))

	fail := &Error{}
	mounts := make(map[string]Mount, len(wanted))
	for i := range wanted {
		vol := &wanted[i].Volume
		if vol.Image != nil {
			if err := imageErrs[vol.Name]; err != nil {
				fail.Failures = append(fail.Failures, setUpFailure(vol.Name, err))
			} else {
				mounts[vol.Name] = images[vol.Name]
			}
			continue
		}
		mount, err := m.setUp(ctx, snap, p, &wanted[i])
		if err != nil {
			fail.Failures = append(fail.Failures, asFailure(vol.Name, err))
			continue
		}
		mounts[vol.Name] = mount
	}
	p.made = mounts
	p.failed = len(fail.Failures) > 0
	if p.failed {
		m.finish(fail, wanted, mounts)
		return mounts, fail
	}
	return mounts, nil
}

// Mounts returns what the last Prepare of a pod made, nil if there was none.
func (m *Manager) Mounts(uid types.UID) map[string]Mount {
	m.mu.Lock()
	p := m.pods[uid]
	m.mu.Unlock()
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.made
}

// enter returns the state of a pod and makes one if there is none.
func (m *Manager) enter(pod *corev1.Pod) *podState {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pods[pod.UID]
	if p == nil {
		p = &podState{
			uid:     pod.UID,
			pod:     pod,
			tokens:  map[tokenKey]heldToken{},
			again:   make(chan struct{}, 1),
			sources: map[source]struct{}{},

			certificates: map[certificateKey]*heldCertificate{},
		}
		m.pods[pod.UID] = p
	}
	return p
}

// checkUID refuses what could not be the name of a directory of its own.
func checkUID(uid types.UID) error {
	s := string(uid)
	if s == "" || s[0] == '.' || strings.ContainsAny(s, "/\x00") {
		return fmt.Errorf("invalid pod UID %q", s)
	}
	return nil
}

// setUpFailure words a failure as upstream's mount operation does.
func setUpFailure(volume string, err error) Failure {
	return Failure{Volume: volume, Err: err,
		Message: fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", volume, err)}
}

// processError is a failure before any mount: the volume's claim cannot be used yet.
type processError struct{ err error }

func (e *processError) Error() string { return e.err.Error() }
func (e *processError) Unwrap() error { return e.err }

func asFailure(volume string, err error) Failure {
	var pe *processError
	if errors.As(err, &pe) {
		return Failure{Volume: volume, Err: err} // finish writes the message
	}
	return setUpFailure(volume, err)
}

// finish turns the volumes that could not be processed into the one message that upstream
// gives for them.
func (m *Manager) finish(fail *Error, wanted []wantedVolume, mounts map[string]Mount) {
	var unmounted, failed, reasons []string
	keep := fail.Failures[:0:0]
	var first Failure
	for _, f := range fail.Failures {
		if f.Message != "" {
			keep = append(keep, f)
			continue
		}
		if first.Err == nil {
			first = f
		}
		failed = append(failed, f.Volume)
		reasons = append(reasons, f.Err.Error())
	}
	if first.Err == nil {
		return
	}
	for _, w := range wanted {
		if _, ok := mounts[w.Name]; !ok {
			unmounted = append(unmounted, w.Name)
		}
	}
	sort.Strings(unmounted)
	cause := strings.Join(reasons, ", ")
	if len(reasons) > 1 {
		cause = "[" + cause + "]"
	}
	first.Message = fmt.Sprintf(
		"Unable to attach or mount volumes: unmounted volumes=%v, unattached volumes=[], failed to process volumes=%v: %s",
		unmounted, failed, cause)
	fail.Failures = append(keep, first)
}
