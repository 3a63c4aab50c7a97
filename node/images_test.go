package node

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
)

func TestImagePullBackOff(t *testing.T) {
	run(t, func(r *rig) {
		r.rt.images.pull = func(string) error { return errFake }
		r.create(podOf("web", "a: run"))
		r.advance(100 * time.Millisecond)
		r.want("web", "Pending a=ErrImagePull")
		r.advance(2 * time.Second)
		r.want("web", "Pending a=ImagePullBackOff")
		st := r.get("web").Status.ContainerStatuses[0].State.Waiting
		if st.Message != `Back-off pulling image "img": ErrImagePull: failed to pull and unpack image "img": fake failure` {
			t.Error(st.Message)
		}
		r.wantPods(
			`Pulling: Pulling image "img"`,
			`Failed: Failed to pull image "img": failed to pull and unpack image "img": fake failure`,
			"Failed: Error: ErrImagePull",
			`BackOff: Back-off pulling image "img"`,
			"Failed: Error: ImagePullBackOff",
		)
		r.advance(10 * time.Second)
		r.rt.images.mu.Lock()
		if n := len(r.rt.images.pulls); n != 2 {
			t.Errorf("%d pulls", n)
		}
		r.rt.images.pull = nil
		r.rt.images.mu.Unlock()
		r.advance(21 * time.Second)
		r.want("web", "Running a=running+")
	})
}

// wantPods compares the events that are not the node's.
func (r *rig) wantPods(want ...string) {
	r.t.Helper()
	var got []string
	for _, e := range r.takeEvents() {
		if !strings.HasPrefix(e, "Starting:") && !strings.HasPrefix(e, "Node") {
			got = append(got, e)
		}
	}
	r.mu.Lock()
	r.events = got
	r.mu.Unlock()
	r.wantEvents(want...)
}

func TestImagePolicies(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("never", "a: run")
		p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever
		r.create(p)
		r.advance(time.Second)
		r.want("never", "Pending a=ErrImageNeverPull")
		if m := r.get("never").Status.ContainerStatuses[0].State.Waiting.Message; m != `Container image "img" is not present with pull policy of Never` {
			t.Error(m)
		}
		p = podOf("bad", "a: run")
		p.Spec.Containers[0].Image = "BAD::name"
		r.create(p)
		r.advance(time.Second)
		r.want("bad", "Pending a=InvalidImageName")
		p = podOf("always", "a: run")
		p.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways
		r.create(p)
		r.create(p2(p, "always2"))
		r.advance(time.Second)
		if n := len(r.rt.images.pulls); n != 2 {
			t.Errorf("pulled %d times", n)
		}
	})
}

func p2(p *corev1.Pod, name string) *corev1.Pod {
	q := podOf(name)
	q.Spec = *p.Spec.DeepCopy()
	return q
}

func TestPullSecrets(t *testing.T) {
	run(t, func(r *rig) {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "cred", Namespace: "default"}, Type: corev1.SecretTypeDockerConfigJson,
			Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths":{"https://reg.example.com/v1/":{"auth":"dTpw"},"other.example.com":{"username":"x"}}}`)}}
		if _, err := r.c.Create(context.Background(), "secrets", secret, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		p := podOf("web", "a: run")
		p.Spec.Containers[0].Image = "reg.example.com/team/app"
		p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "cred"}, {Name: "missing"}}
		r.create(p)
		r.advance(time.Second)
		if got := r.rt.images.auths; len(got) != 1 || len(got[0]) != 1 || got[0][0] != (container.Auth{Username: "u", Password: "p"}) {
			t.Errorf("%+v", got)
		}
		if e := strings.Join(r.takeEvents(), "\n"); !strings.Contains(e, "FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets (missing); attempting to pull the image may not succeed.") {
			t.Error(e)
		}
	})
}

func TestImageChange(t *testing.T) {
	run(t, func(r *rig) {
		r.create(podOf("web", "a: run"))
		r.advance(time.Second)
		r.takeEvents()
		_, err := client.Mutate(context.Background(), r.c, client.Pods, "default", "web", "", func(p *corev1.Pod) bool {
			p.Spec.Containers[0].Image = "img:2"
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		r.advance(time.Second)
		r.want("web", "Running a=running(last Error/143)x1+")
		if e := strings.Join(r.takeEvents(), "\n"); !strings.HasPrefix(e, "Killing: Container a definition changed, will be restarted") {
			t.Error(e)
		}
		if got := r.rt.byName("a").Config.Image; got != "sha256:img:2" {
			t.Error(got)
		}
	})
}
