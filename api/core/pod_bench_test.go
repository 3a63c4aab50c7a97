package core

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// benchPod is a pod as a Deployment makes it: two containers with probes, resources,
// variables and the token volume that admission adds.
const benchPod = `
metadata:
  name: web-6f7c9d-abcde
  namespace: default
  labels: {app: web, tier: front, pod-template-hash: 6f7c9d}
  annotations: {example.com/owner: team-a}
spec:
  serviceAccountName: default
  tolerations:
  - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 300}
  - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 300}
  securityContext: {runAsNonRoot: true, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: web
    image: registry.example.com/web:1.2.3
    ports: [{name: http, containerPort: 8080}, {name: metrics, containerPort: 9090}]
    env:
    - {name: A, value: b}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: db, key: password}}}
    resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 500m, memory: 128Mi}}
    readinessProbe: {httpGet: {path: /ready, port: http}}
    livenessProbe: {httpGet: {path: /live, port: http}}
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts:
    - {name: config, mountPath: /etc/web}
    - {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
  - name: proxy
    image: registry.example.com/proxy
    resources: {requests: {cpu: 10m, memory: 32Mi}}
    volumeMounts:
    - {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
  volumes:
  - {name: config, configMap: {name: web}}
  - name: token
    projected:
      sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
`

func decodePod(t testing.TB, text string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// BenchmarkPodCreate is what the rules of one pod cost when it is created. Budget: 30 us.
func BenchmarkPodCreate(b *testing.B) {
	k, original := podKind(), decodePod(b, benchPod)
	pods := make([]*corev1.Pod, 256)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i := range pods {
			pods[i] = original.DeepCopy()
		}
		b.StartTimer()
		for _, p := range pods {
			k.Default(p)
			k.PrepareCreate(p)
			if errs := k.Validate(p); len(errs) > 0 {
				b.Fatal(errs)
			}
			k.Warnings(p, nil)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(len(pods)), "us/pod")
}

// BenchmarkPodStatus is what the rules of a status update cost.
func BenchmarkPodStatus(b *testing.B) {
	k, old := podKind(), decodePod(b, benchPod)
	k.Default(old)
	k.PrepareCreate(old)
	status := k.Subresource("status").Strategy
	p := old.DeepCopy()
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady}}
	p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.7"}}
	b.ReportAllocs()
	for b.Loop() {
		k.Default(p)
		status.PrepareUpdate(p, old)
		if errs := status.ValidateUpdate(p, old); len(errs) > 0 {
			b.Fatal(errs)
		}
		k.Desired(p, old)
	}
}
