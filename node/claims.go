package node

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/node/claims"
)

// eventFailedClaims is the reason of the event about claims that cannot be prepared.
const eventFailedClaims = "FailedPrepareDynamicResources"

func (a *Agent) prepareClaims(ctx context.Context, pod *corev1.Pod) error {
	if a.cfg.Claims == nil {
		return errors.New("this node takes no DRA drivers")
	}
	return a.cfg.Claims.Prepare(ctx, pod)
}

func (a *Agent) unprepareClaims(ctx context.Context, pod *corev1.Pod) error {
	if a.cfg.Claims == nil || !claims.Uses(pod) {
		return nil
	}
	return a.cfg.Claims.Unprepare(ctx, pod.UID)
}
