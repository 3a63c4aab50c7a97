package clustertest

import (
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// completes is a template whose pods end with success after a time.
func completes(after string) corev1.PodTemplateSpec {
	pod := template(nil)
	pod.Annotations = map[string]string{"simulated.coracle.dev/completes-after": after}
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	return pod
}

// TestADayOfACronJob waits for a day in which a CronJob runs every hour.
func TestADayOfACronJob(t *testing.T) {
	real := time.Now()
	synctest.Test(t, func(t *testing.T) {
		c := Start(t)
		kept := int32(100)
		_, err := c.Client().BatchV1().CronJobs("default").Create(t.Context(), &batchv1.CronJob{
			ObjectMeta: metav1.ObjectMeta{Name: "hourly"},
			Spec: batchv1.CronJobSpec{Schedule: "30 * * * *", SuccessfulJobsHistoryLimit: &kept,
				JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: completes("10m")}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		jobs, err := c.Client().BatchV1().Jobs("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(jobs.Items) != 24 {
			t.Errorf("%d jobs in a day of 24 hours", len(jobs.Items))
		}
		for _, j := range jobs.Items {
			if j.Status.Succeeded != 1 || j.Status.CompletionTime == nil || j.Status.CompletionTime.Sub(j.Status.StartTime.Time) < 10*time.Minute {
				t.Errorf("%s: %+v", j.Name, j.Status)
			}
		}
	})
	t.Logf("a day took %s", time.Since(real))
}

// TestMinReadySeconds follows a rollout whose pods have to be ready for half a minute each.
func TestMinReadySeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Nodes(3))
		d := deployment("web", 2)
		d.Spec.MinReadySeconds = 30
		none, one := zeroOrOne()
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxUnavailable: none, MaxSurge: one}
		deployments := c.Client().AppsV1().Deployments("default")
		if _, err := deployments.Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		state := func() appsv1.DeploymentStatus {
			t.Helper()
			synctest.Wait()
			d, err := deployments.Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return d.Status
		}
		time.Sleep(29 * time.Second)
		if s := state(); s.ReadyReplicas != 2 || s.AvailableReplicas != 0 {
			t.Errorf("after 29 s: %d ready, %d available; want 2 and 0", s.ReadyReplicas, s.AvailableReplicas)
		}
		time.Sleep(2 * time.Second)
		if s := state(); s.AvailableReplicas != 2 {
			t.Fatalf("after 31 s: %d available, want 2", s.AvailableReplicas)
		}
		// One pod after the other is replaced, and each new one has to prove itself.
		now, err := deployments.Get(t.Context(), "web", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		now.Spec.Template.Spec.Containers[0].Image = "example.com/image:2"
		if _, err := deployments.Update(t.Context(), now, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if s := state(); s.UpdatedReplicas != 1 || s.Replicas != 3 {
			t.Errorf("at the beginning %d of %d are new, want 1 of 3", s.UpdatedReplicas, s.Replicas)
		}
		time.Sleep(32 * time.Second)
		if s := state(); s.UpdatedReplicas != 2 {
			t.Errorf("after 32 s %d are new, want 2", s.UpdatedReplicas)
		}
		time.Sleep(32 * time.Second)
		if s := state(); s.UpdatedReplicas != 2 || s.Replicas != 2 || s.AvailableReplicas != 2 {
			t.Errorf("at the end: %+v", s)
		}
	})
}

// TestTimeToLive sees a Job go, with its pod, when its time is over.
func TestTimeToLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t)
		ttl := int32(3600)
		jobs := c.Client().BatchV1().Jobs("default")
		_, err := jobs.Create(t.Context(), &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "once"},
			Spec: batchv1.JobSpec{TTLSecondsAfterFinished: &ttl, Template: completes("1m")}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + 30*time.Second)
		synctest.Wait()
		if j, err := jobs.Get(t.Context(), "once", metav1.GetOptions{}); err != nil || j.Status.Succeeded != 1 {
			t.Fatalf("half a minute before its time: %v, %v", j.Status, err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, err := jobs.Get(t.Context(), "once", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("after its time: %v", err)
		}
		pods, err := c.Client().CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(pods.Items) > 0 {
			t.Errorf("%d pods are left, %v", len(pods.Items), err)
		}
	})
}

// TestANodeFails switches a node off: its pods are not ready when it is found out, and are evicted five minutes later. When
// it comes back, the cluster trusts it again.
func TestANodeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Nodes(2))
		if _, err := c.Client().AppsV1().Deployments("default").Create(t.Context(), deployment("web", 4), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		on := func(node string, count func(*corev1.Pod) bool) int {
			t.Helper()
			synctest.Wait()
			pods, err := c.Client().CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for i := range pods.Items {
				if count(&pods.Items[i]) {
					n++
				}
			}
			return n
		}
		ready := func(p *corev1.Pod) bool {
			for _, cond := range p.Status.Conditions {
				if cond.Type == corev1.PodReady {
					return cond.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
				}
			}
			return false
		}
		leaving := func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil }
		if n := on("node-1", ready); n != 2 {
			t.Fatalf("%d ready pods on node-1, want 2", n)
		}
		if err := c.StopNode("node-1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Second) // less than the grace period, whenever the last lease was
		if n := on("node-1", ready); n != 2 {
			t.Errorf("before the grace period ends %d pods on node-1 are ready, want 2", n)
		}
		time.Sleep(time.Minute)
		if n, gone := on("node-1", ready), on("node-1", leaving); n != 0 || gone != 0 {
			t.Errorf("on the unreachable node %d pods are ready and %d leave; want none", n, gone)
		}
		time.Sleep(5 * time.Minute)
		if n, moved := on("node-1", leaving), on("node-0", ready); n != 2 || moved != 4 {
			t.Errorf("after five minutes %d pods leave node-1 and %d are ready on node-0; want 2 and 4", n, moved)
		}
		if err := c.StartNode(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		n, err := c.Client().CoreV1().Nodes().Get(t.Context(), "node-1", metav1.GetOptions{})
		if err != nil || len(n.Spec.Taints) != 0 {
			t.Errorf("the node that is back has taints %v, %v", n.Spec.Taints, err)
		}
		if n := on("node-1", leaving); n != 0 {
			t.Errorf("%d pods have still not left the node that is back", n)
		}
	})
}

// TestAPodBeforeTheFirstNode has a pod wait for a node, which begins, as all do, with the taint of one that is not ready.
func TestAPodBeforeTheFirstNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Nodes(0))
		pods := c.Client().CoreV1().Pods("default")
		if _, err := pods.Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "early"}, Spec: template(nil).Spec}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // no back-off is left
		now := metav1.Now()
		enough := corev1.ResourceList{corev1.ResourcePods: resource.MustParse("10")}
		_, err := c.Client().CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "late"},
			Status: corev1.NodeStatus{Capacity: enough, Allocatable: enough, Conditions: []corev1.NodeCondition{
				{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: now, LastTransitionTime: now}}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if p, err := pods.Get(t.Context(), "early", metav1.GetOptions{}); err != nil || p.Spec.NodeName != "late" {
			t.Errorf("the pod is on %q (%v): %v", p.Spec.NodeName, err, p.Status.Conditions)
		}
	})
}
