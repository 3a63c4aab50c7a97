package core

import (
	corev1 "k8s.io/api/core/v1"
)

// dropGated takes out of a pod spec the fields of alpha features, which upstream v1.37
// drops in its default configuration (all of them are absent from stored objects
// therefore). In the order of their gates:
//
//	AtomicWriteVolumeUserFields  user and defaultUser of file volumes
//	ContainerStopSignals         lifecycle.stopSignal
//	EmptyDirVolumeMode           emptyDir.mode
//	EvictionRequestAPI           evictionResponders
//	GenericWorkload              schedulingGroup
//	GRPCContainerProbeTLS        grpc.mode
//	H2CContainerProbe            httpGet.protocol
//	VolumeBindMountOptions       volumeMounts.bindMountOptions
//	CrossNamespaceVolumeDataSource is dropped with the claim spec (dropGatedClaim).
func dropGated(s *corev1.PodSpec) {
	s.SchedulingGroup = nil
	s.EvictionResponders = nil
	eachContainer(s, dropGatedContainer)
	for i := range s.Volumes {
		dropGatedVolume(&s.Volumes[i].VolumeSource)
	}
}

func dropGatedContainer(c *corev1.Container) {
	for i := range c.VolumeMounts {
		c.VolumeMounts[i].BindMountOptions = nil
	}
	dropGatedProbe(c.LivenessProbe)
	dropGatedProbe(c.ReadinessProbe)
	dropGatedProbe(c.StartupProbe)
	if l := c.Lifecycle; l != nil {
		l.StopSignal = nil
		dropGatedHandler(l.PostStart)
		dropGatedHandler(l.PreStop)
	}
}

func dropGatedProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	if p.HTTPGet != nil {
		p.HTTPGet.Protocol = nil
	}
	if p.GRPC != nil {
		p.GRPC.Mode = nil
	}
}

func dropGatedHandler(h *corev1.LifecycleHandler) {
	if h != nil && h.HTTPGet != nil {
		h.HTTPGet.Protocol = nil
	}
}

func dropGatedVolume(s *corev1.VolumeSource) {
	switch {
	case s.EmptyDir != nil:
		s.EmptyDir.Mode = nil
	case s.Secret != nil:
		s.Secret.DefaultUser = nil
		dropKeyUsers(s.Secret.Items)
	case s.ConfigMap != nil:
		s.ConfigMap.DefaultUser = nil
		dropKeyUsers(s.ConfigMap.Items)
	case s.DownwardAPI != nil:
		s.DownwardAPI.DefaultUser = nil
		dropFileUsers(s.DownwardAPI.Items)
	case s.Projected != nil:
		s.Projected.DefaultUser = nil
		for i := range s.Projected.Sources {
			dropGatedProjection(&s.Projected.Sources[i])
		}
	case s.Ephemeral != nil && s.Ephemeral.VolumeClaimTemplate != nil:
		dropGatedClaim(&s.Ephemeral.VolumeClaimTemplate.Spec)
	}
}

func dropGatedProjection(p *corev1.VolumeProjection) {
	if p.Secret != nil {
		dropKeyUsers(p.Secret.Items)
	}
	if p.ConfigMap != nil {
		dropKeyUsers(p.ConfigMap.Items)
	}
	if p.DownwardAPI != nil {
		dropFileUsers(p.DownwardAPI.Items)
	}
	if p.ServiceAccountToken != nil {
		p.ServiceAccountToken.User = nil
	}
	if p.ClusterTrustBundle != nil {
		p.ClusterTrustBundle.User = nil
	}
	if p.PodCertificate != nil {
		p.PodCertificate.User = nil
	}
}

func dropKeyUsers(items []corev1.KeyToPath) {
	for i := range items {
		items[i].User = nil
	}
}

func dropFileUsers(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		items[i].User = nil
	}
}

// dropGatedClaim takes the alpha field dataSourceRef.namespace out of a claim, by
// taking the whole reference, as upstream does.
func dropGatedClaim(s *corev1.PersistentVolumeClaimSpec) {
	if r := s.DataSourceRef; r != nil && r.Namespace != nil && *r.Namespace != "" {
		s.DataSourceRef = nil
	}
}
