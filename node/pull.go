package node

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/store"
)

// Reasons of containers that wait for an image, and of the events about it.
const (
	reasonErrImagePull     = "ErrImagePull"
	reasonImagePullBackOff = "ImagePullBackOff"
	reasonNeverPull        = "ErrImageNeverPull"
	reasonInvalidImage     = "InvalidImageName"
	eventPulling           = "Pulling"
	eventPulled            = "Pulled"
	eventFailed            = "Failed"
	eventBackOff           = "BackOff"
	eventInspectFailed     = "InspectFailed"
)

// puller makes images present: by pull policy, at most limit at once, with a back-off for each
// pod and image.
type puller struct {
	images container.Images
	slots  chan struct{}
	now    func() time.Time

	mu   sync.Mutex // guards wait
	wait map[pullKey]*backoff
}

// pullKey is what a back-off is kept for.
type pullKey struct {
	pod   types.UID
	image string
}

func newPuller(images container.Images, limit int, now func() time.Time) *puller {
	return &puller{images: images, slots: make(chan struct{}, limit), now: now, wait: map[pullKey]*backoff{}}
}

// forget drops what is kept for a pod.
func (p *puller) forget(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range p.wait {
		if k.pod == uid {
			delete(p.wait, k)
		}
	}
}

// ensure makes an image present. A failure says for how long to wait with the next try. note
// records an event about the container.
func (p *puller) ensure(ctx context.Context, uid types.UID, image string, policy corev1.PullPolicy, auths []container.Auth, note func(kind, reason, message string)) (container.Image, *failure) {
	found, err := p.images.Resolve(image)
	present := err == nil
	if err != nil && !errors.Is(err, container.ErrImageNotFound) {
		return found, p.invalid(image, err, note)
	}
	if present && policy != corev1.PullAlways {
		note(corev1.EventTypeNormal, eventPulled, fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", image))
		return found, nil
	}
	if policy == corev1.PullNever {
		message := fmt.Sprintf("Container image %q is not present with pull policy of Never", image)
		note(corev1.EventTypeWarning, reasonNeverPull, message)
		return found, &failure{reason: reasonNeverPull, message: message, at: p.now(), until: p.now().Add(retryConfig)}
	}
	return p.pull(ctx, pullKey{uid, image}, auths, note)
}

func (p *puller) invalid(image string, err error, note func(kind, reason, message string)) *failure {
	message := fmt.Sprintf("Failed to apply default image tag %q: couldn't parse image name %q: invalid reference format", image, image)
	if !errorKind(err, container.PullInvalidName) && !strings.Contains(err.Error(), "reference") && !strings.Contains(err.Error(), "parse") {
		message = err.Error()
	}
	note(corev1.EventTypeWarning, eventInspectFailed, message)
	return &failure{reason: reasonInvalidImage, message: message, at: p.now(), until: p.now().Add(retryConfig)}
}

func errorKind(err error, kind container.PullErrorKind) bool {
	var pe *container.PullError
	return errors.As(err, &pe) && pe.Kind == kind
}

func (p *puller) pull(ctx context.Context, key pullKey, auths []container.Auth, note func(kind, reason, message string)) (container.Image, *failure) {
	note(corev1.EventTypeNormal, eventPulling, fmt.Sprintf("Pulling image %q", key.image))
	began := p.now()
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return container.Image{}, &failure{reason: reasonErrImagePull, message: ctx.Err().Error(), at: p.now()}
	}
	slot := p.now()
	img, err := p.images.Pull(ctx, key.image, container.PullOptions{Auths: auths})
	<-p.slots
	ended := p.now()
	if err == nil {
		p.mu.Lock()
		delete(p.wait, key)
		p.mu.Unlock()
		note(corev1.EventTypeNormal, eventPulled, fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.",
			key.image, ended.Sub(slot).Truncate(time.Millisecond), ended.Sub(began).Truncate(time.Millisecond), img.Size))
		return img, nil
	}
	if errorKind(err, container.PullInvalidName) {
		return img, p.invalid(key.image, err, note)
	}
	if ctx.Err() == nil {
		note(corev1.EventTypeWarning, eventFailed, fmt.Sprintf("Failed to pull image %q: %v", key.image, err))
	}
	p.mu.Lock()
	b := p.wait[key]
	if b == nil {
		b = &backoff{}
		p.wait[key] = b
	}
	b.next(ended, ended)
	delay := b.delay
	p.mu.Unlock()
	return img, &failure{
		reason: reasonErrImagePull, message: err.Error(), at: ended, until: ended.Add(delay),
		then: reasonImagePullBackOff, thenMessage: fmt.Sprintf("Back-off pulling image %q: %s: %s", key.image, reasonErrImagePull, err.Error()),
	}
}

// pullAuths reads the registry credentials of a pod that concern an image, the most specific first
// (https://kubernetes.io/docs/concepts/containers/images/#config-json). missing names the secrets that are not
// there.
func pullAuths(s store.Snapshot, pod *corev1.Pod, image string) (auths []container.Auth, missing []string) {
	type candidate struct {
		key  string
		auth container.Auth
	}
	var found []candidate
	for _, ref := range pod.Spec.ImagePullSecrets {
		secret, ok := client.Secrets.Get(s, pod.Namespace, ref.Name)
		if !ok {
			missing = append(missing, ref.Name)
			continue
		}
		for registry, auth := range dockerAuths(secret) {
			if key := trimRegistry(registry); registryMatches(key, image) {
				found = append(found, candidate{key, auth})
			}
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i].key > found[j].key })
	for _, c := range found {
		auths = append(auths, c.auth)
	}
	return auths, missing
}

// dockerAuths reads a secret of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg. A damaged
// one holds nothing.
func dockerAuths(s *corev1.Secret) map[string]container.Auth {
	type entry struct {
		Username, Password, Auth string
		IdentityToken            string `json:"identitytoken"`
		RegistryToken            string `json:"registrytoken"`
	}
	var config struct {
		Auths map[string]entry `json:"auths"`
	}
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		if json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &config) != nil {
			return nil
		}
	case corev1.SecretTypeDockercfg:
		if json.Unmarshal(s.Data[corev1.DockerConfigKey], &config.Auths) != nil {
			return nil
		}
	}
	out := make(map[string]container.Auth, len(config.Auths))
	for registry, e := range config.Auths {
		a := container.Auth{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
		if a.Username == "" && e.Auth != "" {
			if raw, err := base64.StdEncoding.DecodeString(e.Auth); err == nil {
				a.Username, a.Password, _ = strings.Cut(string(raw), ":")
			}
		}
		out[registry] = a
	}
	return out
}

// trimRegistry takes scheme, API version and a final slash off a registry's key.
func trimRegistry(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	key = strings.TrimSuffix(strings.TrimSuffix(key, "/v1"), "/v2")
	return strings.TrimSuffix(key, "/")
}

// registryMatches tells whether credentials for key serve an image: the host is the same, each label
// of it possibly a glob, and the path is a prefix.
func registryMatches(key, image string) bool {
	host, path, _ := strings.Cut(key, "/")
	imageHost, imagePath := splitImage(image)
	if host == "docker.io" || host == "registry-1.docker.io" {
		host = "index.docker.io"
	}
	have, want := strings.Split(imageHost, "."), strings.Split(host, ".")
	if len(have) != len(want) {
		return false
	}
	for i := range want {
		if !globLabel(want[i], have[i]) {
			return false
		}
	}
	return strings.HasPrefix(imagePath, path)
}

// splitImage gives the registry and the path of an image name.
func splitImage(image string) (host, path string) {
	first, rest, ok := strings.Cut(image, "/")
	if ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		if first == "docker.io" {
			first = "index.docker.io"
		}
		return first, rest
	}
	if !ok {
		return "index.docker.io", "library/" + image
	}
	return "index.docker.io", image
}

// globLabel matches one label of a host name, where "*" stands for any characters.
func globLabel(pattern, s string) bool {
	for pattern != "" {
		if pattern[0] == '*' {
			for i := range len(s) + 1 {
				if globLabel(pattern[1:], s[i:]) {
					return true
				}
			}
			return false
		}
		if s == "" || pattern[0] != s[0] {
			return false
		}
		pattern, s = pattern[1:], s[1:]
	}
	return s == ""
}
