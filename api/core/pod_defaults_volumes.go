package core

import (
	corev1 "k8s.io/api/core/v1"
)

// defaultMode is what files of configMap, secret, downwardAPI and projected volumes get.
const defaultMode = int32(0o644)

// defaultVolume fills one volume. A volume without any source becomes an emptyDir.
func defaultVolume(v *corev1.Volume) {
	s := &v.VolumeSource
	if *s == (corev1.VolumeSource{}) {
		s.EmptyDir = &corev1.EmptyDirVolumeSource{}
		return
	}
	defaultFileVolume(s)
	if s.HostPath != nil {
		defaultHostPath(s.HostPath)
	}
	if v := s.ISCSI; v != nil {
		setIfEmpty(&v.ISCSIInterface, "default")
	}
	if v := s.RBD; v != nil {
		defaultRBD(&v.RBDPool, &v.RadosUser, &v.Keyring)
	}
	if s.AzureDisk != nil {
		defaultAzureDisk(s.AzureDisk)
	}
	if v := s.ScaleIO; v != nil {
		defaultScaleIO(&v.StorageMode, &v.FSType)
	}
	if s.Ephemeral != nil && s.Ephemeral.VolumeClaimTemplate != nil {
		defaultClaimSpec(&s.Ephemeral.VolumeClaimTemplate.Spec)
	}
	if s.Image != nil && s.Image.PullPolicy == "" {
		s.Image.PullPolicy = pullPolicy(s.Image.Reference)
	}
}

// defaultFileVolume fills the volumes that are files made from API objects.
func defaultFileVolume(s *corev1.VolumeSource) {
	if s.Secret != nil {
		setMode(&s.Secret.DefaultMode)
	}
	if s.ConfigMap != nil {
		setMode(&s.ConfigMap.DefaultMode)
	}
	if s.DownwardAPI != nil {
		setMode(&s.DownwardAPI.DefaultMode)
		defaultDownward(s.DownwardAPI.Items)
	}
	if s.Projected != nil {
		setMode(&s.Projected.DefaultMode)
		for i := range s.Projected.Sources {
			defaultProjection(&s.Projected.Sources[i])
		}
	}
}

func defaultRBD(pool, user, keyring *string) {
	setIfEmpty(pool, "rbd")
	setIfEmpty(user, "admin")
	setIfEmpty(keyring, "/etc/ceph/keyring")
}

func defaultScaleIO(mode, fsType *string) {
	setIfEmpty(mode, "ThinProvisioned")
	setIfEmpty(fsType, "xfs")
}

func defaultProjection(p *corev1.VolumeProjection) {
	if p.DownwardAPI != nil {
		defaultDownward(p.DownwardAPI.Items)
	}
	if t := p.ServiceAccountToken; t != nil && t.ExpirationSeconds == nil {
		t.ExpirationSeconds = new(int64(60 * 60))
	}
	if c := p.PodCertificate; c != nil && c.MaxExpirationSeconds == nil {
		c.MaxExpirationSeconds = new(int32(24 * 60 * 60))
	}
}

func defaultDownward(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		defaultFieldRef(items[i].FieldRef)
	}
}

func defaultHostPath(h *corev1.HostPathVolumeSource) {
	if h.Type == nil {
		h.Type = new(corev1.HostPathUnset)
	}
}

func defaultAzureDisk(d *corev1.AzureDiskVolumeSource) {
	if d.CachingMode == nil {
		d.CachingMode = new(corev1.AzureDataDiskCachingReadWrite)
	}
	if d.Kind == nil {
		d.Kind = new(corev1.AzureSharedBlobDisk)
	}
	if d.FSType == nil {
		d.FSType = new("ext4")
	}
	if d.ReadOnly == nil {
		d.ReadOnly = new(false)
	}
}

func defaultClaimSpec(s *corev1.PersistentVolumeClaimSpec) {
	if s.VolumeMode == nil {
		s.VolumeMode = new(corev1.PersistentVolumeFilesystem)
	}
	defaultResourceList(s.Resources.Limits)
	defaultResourceList(s.Resources.Requests)
}

func setMode(m **int32) {
	if *m == nil {
		*m = new(defaultMode)
	}
}

func setIfEmpty(s *string, value string) {
	if *s == "" {
		*s = value
	}
}
