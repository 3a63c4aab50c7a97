package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/rand"

	"coracle.dev/coracle/client"
)

const (
	defaultAccount = "default"
	// tokenPath is where containers find the token of their service account.
	tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"
	// tokenVolume begins the name of the volume that holds it.
	tokenVolume = "kube-api-access-"
	// tokenSeconds is the lifetime that is asked for: an hour, and seven seconds that tell it from
	// an hour that someone wrote.
	tokenSeconds = 60*60 + 7
	// rootCA is the config map with the certificate of the API server's authority.
	rootCA = "kube-root-ca.crt"
	// accountWait is how long a new namespace's default account is waited for.
	accountWait = 2 * time.Second
)

// serviceAccount gives every pod the account that it runs as, with token, pull secrets and the
// restrictions that the account brings.
func serviceAccount(reader client.Reader) Plugin {
	return Plugin{
		Name: "ServiceAccount",
		Mutate: func(ctx context.Context, r *Request) error {
			if r.Operation != Create || !r.Is("pods", "") {
				return nil
			}
			pod := r.Object.(*corev1.Pod)
			if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
				return mirrorPod(r, pod)
			}
			if pod.Spec.ServiceAccountName == "" {
				pod.Spec.ServiceAccountName = defaultAccount
			}
			pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
			sa, err := account(ctx, reader, r, pod.Spec.ServiceAccountName)
			if err != nil {
				return Forbidden(r, err)
			}
			if enforced, _ := strconv.ParseBool(sa.Annotations["kubernetes.io/enforce-mountable-secrets"]); enforced {
				if err := onlyMountable(sa, pod); err != nil {
					return Forbidden(r, err)
				}
			}
			if automount(sa, pod) {
				mountToken(pod)
			}
			if len(pod.Spec.ImagePullSecrets) == 0 {
				pod.Spec.ImagePullSecrets = slices.Clone(sa.ImagePullSecrets)
			}
			return nil
		},
	}
}

// mirrorPod refuses what the pod of a file on a node cannot have.
func mirrorPod(r *Request, pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return Forbidden(r, errors.New("a mirror pod may not reference service accounts"))
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Secret != nil {
			return Forbidden(r, errors.New("a mirror pod may not reference secrets"))
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil {
				return Forbidden(r, errors.New("a mirror pod may not use ServiceAccountToken volume projections"))
			}
		}
	}
	return nil
}

// account finds the account. The default one is on its way when the namespace is new: it is waited for.
func account(ctx context.Context, reader client.Reader, r *Request, name string) (*corev1.ServiceAccount, error) {
	sa, ok := client.ServiceAccounts.Get(r.Snapshot, r.Namespace, name)
	if ok {
		return sa, nil
	}
	if name == defaultAccount {
		if sa = awaitAccount(ctx, reader, r); sa != nil {
			return sa, nil
		}
	}
	return nil, fmt.Errorf("error looking up service account %s/%s: %w", r.Namespace, name,
		apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccount"}, name))
}

func awaitAccount(ctx context.Context, reader client.Reader, r *Request) *corev1.ServiceAccount {
	cursor, err := reader.Cursor(r.Snapshot.Revision(), client.ServiceAccounts.Name)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, accountWait)
	defer cancel()
	for {
		if sa, ok := client.ServiceAccounts.Get(reader.Snapshot(), r.Namespace, defaultAccount); ok {
			return sa
		}
		if _, err := cursor.Next(ctx); err != nil {
			return nil
		}
	}
}

// automount tells whether the pod gets a token: its own word counts, then the account's.
func automount(sa *corev1.ServiceAccount, pod *corev1.Pod) bool {
	switch {
	case pod.Spec.AutomountServiceAccountToken != nil:
		return *pod.Spec.AutomountServiceAccountToken
	case sa.AutomountServiceAccountToken != nil:
		return *sa.AutomountServiceAccountToken
	}
	return true
}

// mountToken mounts the token into every container that has nothing mounted there.
func mountToken(pod *corev1.Pod) {
	name, there := "", false
	for i := range pod.Spec.Volumes {
		if strings.HasPrefix(pod.Spec.Volumes[i].Name, tokenVolume) {
			name, there = pod.Spec.Volumes[i].Name, true
			break
		}
	}
	if name == "" {
		name = tokenVolume + rand.String(5)
	}
	needed := false
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			taken := slices.ContainsFunc(list[i].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == tokenPath })
			if !taken {
				list[i].VolumeMounts = append(list[i].VolumeMounts, corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: tokenPath})
				needed = true
			}
		}
	}
	if needed && !there {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: tokenSource()}})
	}
}

// tokenSource is the volume with token, authority and namespace.
func tokenSource() *corev1.ProjectedVolumeSource {
	seconds, mode := int64(tokenSeconds), int32(0o644)
	return &corev1.ProjectedVolumeSource{
		DefaultMode: &mode,
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: rootCA},
				Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}},
			}}},
		},
	}
}

// onlyMountable refuses secrets that the account does not list.
func onlyMountable(sa *corev1.ServiceAccount, pod *corev1.Pod) error {
	listed := func(name string) bool {
		return slices.ContainsFunc(sa.Secrets, func(s corev1.ObjectReference) bool { return s.Name == name })
	}
	for i := range pod.Spec.Volumes {
		if s := pod.Spec.Volumes[i].Secret; s != nil && !listed(s.SecretName) {
			return fmt.Errorf("volume with secret.secretName=\"%s\" is not allowed because service account %s does not reference that secret", s.SecretName, sa.Name)
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, env := range list[i].Env {
				if env.ValueFrom == nil || env.ValueFrom.SecretKeyRef == nil || listed(env.ValueFrom.SecretKeyRef.Name) {
					continue
				}
				return fmt.Errorf("container %s with envVar %s referencing secret.secretName=\"%s\" is not allowed because service account %s does not reference that secret",
					list[i].Name, env.Name, env.ValueFrom.SecretKeyRef.Name, sa.Name)
			}
		}
	}
	for i, ref := range pod.Spec.ImagePullSecrets {
		if !slices.Contains(sa.ImagePullSecrets, ref) {
			return fmt.Errorf("imagePullSecrets[%d].name=\"%s\" is not allowed because service account %s does not reference that imagePullSecret", i, ref.Name, sa.Name)
		}
	}
	return nil
}
