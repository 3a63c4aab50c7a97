package core

import (
	"fmt"
	"path"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

// persistentVolumeKind describes volumes. Indexes: "claim", namespace/name of the claim that
// a volume is bound or promised to, and "storageclass".
func persistentVolumeKind() *api.Kind {
	return &api.Kind{
		Kind: "PersistentVolume", Resource: "persistentvolumes", Singular: "persistentvolume", ShortNames: []string{"pv"},
		Versions: v1[corev1.PersistentVolume, corev1.PersistentVolumeList](),
		Default:  api.On(defaultVolumeObject),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(v *corev1.PersistentVolume) {
				v.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending}
			}),
			PrepareUpdate: api.OnUpdate(func(v, old *corev1.PersistentVolume) { v.Status = old.Status }),
			Validate: api.Checks(func(v *corev1.PersistentVolume) field.ErrorList {
				return ValidatePersistentVolumeSpec(&v.Spec, v.Name, false, specPath)
			}),
			ValidateUpdate: api.ChecksUpdate(volumeUpdate),
			Warnings:       func(obj, _ api.Object) []string { return volumeWarnings(obj.(*corev1.PersistentVolume)) },
		},
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns:             volumeColumns(),
		Fields:              map[string]func(api.Object) string{"name": objectName},
		Indexes: map[string]func(api.Object) []string{
			"claim": api.Values(func(v *corev1.PersistentVolume) []string {
				if v.Spec.ClaimRef == nil {
					return nil
				}
				return []string{v.Spec.ClaimRef.Namespace + "/" + v.Spec.ClaimRef.Name}
			}),
			"storageclass": api.Values(func(v *corev1.PersistentVolume) []string {
				return []string{storageClass(&v.ObjectMeta, v.Spec.StorageClassName)}
			}),
		},
		Subresources: []api.Subresource{view("status", api.Strategy{
			PrepareUpdate: api.OnUpdate(func(v, old *corev1.PersistentVolume) { v.Spec = old.Spec }),
			ValidateUpdate: api.ChecksUpdate(func(v, _ *corev1.PersistentVolume) field.ErrorList {
				if v.ResourceVersion == "" {
					return field.ErrorList{field.Required(field.NewPath("resourceVersion"), "")}
				}
				return nil
			}),
		})},
	}
}

func defaultVolumeObject(v *corev1.PersistentVolume) {
	if v.Status.Phase == "" {
		v.Status.Phase = corev1.VolumePending
	}
	s := &v.Spec
	if s.PersistentVolumeReclaimPolicy == "" {
		s.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}
	if s.VolumeMode == nil {
		s.VolumeMode = new(corev1.PersistentVolumeFilesystem)
	}
	defaultResourceList(s.Capacity)
	if s.HostPath != nil {
		defaultHostPath(s.HostPath)
	}
	if s.ISCSI != nil {
		setIfEmpty(&s.ISCSI.ISCSIInterface, "default")
	}
	if s.RBD != nil {
		defaultRBD(&s.RBD.RBDPool, &s.RBD.RadosUser, &s.RBD.Keyring)
	}
	if s.AzureDisk != nil {
		defaultAzureDisk(s.AzureDisk)
	}
	if s.ScaleIO != nil {
		defaultScaleIO(&s.ScaleIO.StorageMode, &s.ScaleIO.FSType)
	}
}

// ValidatePersistentVolumeSpec checks the spec of a volume. inline is set for that of a
// VolumeAttachment, which stands for no object.
func ValidatePersistentVolumeSpec(s *corev1.PersistentVolumeSpec, name string, inline bool, path *field.Path) field.ErrorList {
	r := &report{}
	if inline {
		inlineVolume(r, s, path)
	}
	if len(s.AccessModes) == 0 {
		r.required(path.Child("accessModes"), "")
	}
	accessModeList(r, s.AccessModes, path)
	if !inline {
		volumeCapacity(r, s, path)
		if s.PersistentVolumeReclaimPolicy != "" {
			oneOf(r, s.PersistentVolumeReclaimPolicy, path, "persistentVolumeReclaimPolicy",
				corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)
		}
		if a := s.NodeAffinity; a != nil {
			if a.Required != nil {
				nodeSelector(r, a.Required, path.Child("nodeAffinity", "required"))
			} else {
				r.required(path.Child("nodeAffinity", "required"), "must specify required node constraints")
			}
		}
	}
	volumeSource(r, s, name, path)
	if s.HostPath != nil && isRoot(s.HostPath.Path) && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		r.forbidden(path.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'")
	}
	if !inline {
		if s.StorageClassName != "" {
			r.objectName(s.StorageClassName, path, "storageClassName", false)
		}
		if s.VolumeMode != nil {
			oneOf(r, *s.VolumeMode, path, "volumeMode", supportedVolumeModes...)
		}
	}
	if n := s.VolumeAttributesClassName; n != nil {
		if *n == "" {
			r.required(path.Child("volumeAttributesClassName"), "an empty string is disallowed")
		} else {
			r.objectName(*n, path, "volumeAttributesClassName", false)
		}
		if s.CSI == nil {
			r.required(path.Child("csi"), "has to be specified when using volumeAttributesClassName")
		}
	}
	return r.errs
}

func isRoot(p string) bool { return path.Clean(p) == "/" }

// inlineVolume refuses what only a PersistentVolume has.
func inlineVolume(r *report, s *corev1.PersistentVolumeSpec, p *field.Path) {
	const detail = "may not be specified in the context of inline volumes"
	for _, f := range []setField{
		{s.ClaimRef != nil, "claimRef"},
		{len(s.Capacity) != 0, "capacity"},
		{s.NodeAffinity != nil, "nodeAffinity"},
		{s.StorageClassName != "", "storageClassName"},
	} {
		if f.set {
			r.forbidden(p.Child(f.name), detail)
		}
	}
	if s.CSI == nil {
		r.required(p.Child("csi"), "has to be specified in the context of inline volumes")
	}
	if s.PersistentVolumeReclaimPolicy != "" && s.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		r.forbidden(p.Child("persistentVolumeReclaimPolicy"), "may only be Retain in the context of inline volumes")
	}
	if s.VolumeMode != nil && *s.VolumeMode != corev1.PersistentVolumeFilesystem {
		r.forbidden(p.Child("volumeMode"), "may not specify volumeMode other than Filesystem in the context of inline volumes")
	}
}

func volumeCapacity(r *report, s *corev1.PersistentVolumeSpec, p *field.Path) {
	p = p.Child("capacity")
	if len(s.Capacity) == 0 {
		r.required(p, "")
	}
	if _, ok := s.Capacity[corev1.ResourceStorage]; !ok || len(s.Capacity) > 1 {
		r.addOne(field.NotSupported(p, s.Capacity, []corev1.ResourceName{corev1.ResourceStorage}))
	}
	for name, q := range inOrder(s.Capacity) {
		if q.Value() < 0 {
			r.invalid(p.Key(string(name)), q.Value(), "must be a valid resource quantity")
		}
		r.add(validate.PositiveQuantity(q, p.Key(string(name))))
	}
}

// volumeSource checks that one source is given, and that one, in upstream's order.
func volumeSource(r *report, s *corev1.PersistentVolumeSpec, name string, p *field.Path) {
	u := &choice{report: r, path: p, several: severalVolumes}
	u.member(s.HostPath != nil, "hostPath", "hostPath", func(p *field.Path) { hostPath(r, s.HostPath, p) })
	u.member(s.GCEPersistentDisk != nil, "gcePersistentDisk", "persistentDisk", func(p *field.Path) { gceDisk(r, s.GCEPersistentDisk, p) })
	u.member(s.AWSElasticBlockStore != nil, "awsElasticBlockStore", "awsElasticBlockStore", func(p *field.Path) { awsDisk(r, s.AWSElasticBlockStore, p) })
	u.member(s.Glusterfs != nil, "glusterfs", "glusterfs", func(p *field.Path) { glusterfsVolume(r, s.Glusterfs, p) })
	u.member(s.Flocker != nil, "flocker", "flocker", func(p *field.Path) { flocker(r, s.Flocker, p) })
	u.member(s.NFS != nil, "nfs", "nfs", func(p *field.Path) { nfs(r, s.NFS, p) })
	u.member(s.RBD != nil, "rbd", "rbd", func(p *field.Path) { rbd(r, s.RBD.CephMonitors, s.RBD.RBDImage, p) })
	u.member(s.Quobyte != nil, "quobyte", "quobyte", func(p *field.Path) { quobyte(r, s.Quobyte, p) })
	u.member(s.CephFS != nil, "cephFS", "cephfs", func(p *field.Path) { cephFS(r, s.CephFS.Monitors, p) })
	u.member(s.ISCSI != nil, "iscsi", "iscsi", func(p *field.Path) { iscsiVolume(r, s.ISCSI, name, p) })
	u.member(s.Cinder != nil, "cinder", "cinder", func(p *field.Path) {
		r.need(s.Cinder.VolumeID, p, "volumeID")
		if ref := s.Cinder.SecretRef; ref != nil {
			r.need(ref.Name, p.Child("secretRef"), "name")
			r.need(ref.Namespace, p.Child("secretRef"), "namespace")
		}
	})
	u.member(s.FC != nil, "fc", "fc", func(p *field.Path) { fibreChannel(r, s.FC, p) })
	if s.FlexVolume != nil { // is counted, though never refused
		u.taken = true
		flex(r, s.FlexVolume.Driver, s.FlexVolume.Options, p.Child("flexVolume"))
	}
	cloudVolume(u, s)
	u.member(s.Local != nil, "local", "local", func(at *field.Path) {
		if s.Local.Path == "" {
			r.required(at.Child("path"), "")
		} else {
			r.backsteps(s.Local.Path, at.Child("path"))
		}
		if s.NodeAffinity == nil {
			r.required(p.Child("nodeAffinity"), "Local volume requires node affinity")
		}
	})
	u.member(s.StorageOS != nil, "storageos", "storageos", func(p *field.Path) {
		storageOS(r, s.StorageOS.VolumeName, s.StorageOS.VolumeNamespace, p)
		if ref := s.StorageOS.SecretRef; ref != nil {
			r.need(ref.Name, p.Child("secretRef"), "name")
			r.need(ref.Namespace, p.Child("secretRef"), "namespace")
		}
	})
	u.member(s.CSI != nil, "csi", "csi", func(p *field.Path) { csiVolume(r, s.CSI, p) })
	if !u.taken {
		r.required(p, "must specify a volume type")
	}
}

func cloudVolume(u *choice, s *corev1.PersistentVolumeSpec) {
	r := u.report
	u.member(s.AzureFile != nil, "azureFile", "azureFile", func(p *field.Path) {
		r.need(s.AzureFile.SecretName, p, "secretName")
		r.need(s.AzureFile.ShareName, p, "shareName")
		if s.AzureFile.SecretNamespace != nil {
			r.need(*s.AzureFile.SecretNamespace, p, "secretNamespace")
		}
	})
	u.member(s.VsphereVolume != nil, "vsphereVolume", "vsphereVolume", func(p *field.Path) { r.need(s.VsphereVolume.VolumePath, p, "volumePath") })
	u.member(s.PhotonPersistentDisk != nil, "photonPersistentDisk", "photonPersistentDisk", func(p *field.Path) {
		r.need(s.PhotonPersistentDisk.PdID, p, "pdID")
	})
	u.member(s.PortworxVolume != nil, "portworxVolume", "portworxVolume", func(p *field.Path) { r.need(s.PortworxVolume.VolumeID, p, "volumeID") })
	u.member(s.AzureDisk != nil, "azureDisk", "azureDisk", func(p *field.Path) { azureDisk(r, s.AzureDisk, p) })
	u.member(s.ScaleIO != nil, "scaleIO", "scaleIO", func(p *field.Path) {
		scaleIO(r, s.ScaleIO.Gateway, s.ScaleIO.System, s.ScaleIO.VolumeName, p)
	})
}

func glusterfsVolume(r *report, g *corev1.GlusterfsPersistentVolumeSource, p *field.Path) {
	r.need(g.EndpointsName, p, "endpoints")
	r.need(g.Path, p, "path")
	if n := g.EndpointsNamespace; n != nil {
		if *n == "" {
			r.invalid(p.Child("endpointsNamespace"), *n, "if the endpointnamespace is set, it must be a valid namespace name")
		} else {
			r.label(*n, p, "endpointsNamespace")
		}
	}
}

func iscsiVolume(r *report, s *corev1.ISCSIPersistentVolumeSource, name string, p *field.Path) {
	if s.InitiatorName != nil && len(name+":"+s.TargetPortal) > 64 {
		r.invalid(p.Child("targetportal"), s.TargetPortal, iscsiTooLong)
	}
	iscsi(r, s.TargetPortal, s.IQN, s.Lun, s.InitiatorName, "must be valid format", p, (s.DiscoveryCHAPAuth || s.SessionCHAPAuth) && s.SecretRef == nil)
	if s.SecretRef != nil {
		r.need(s.SecretRef.Name, p.Child("secretRef"), "name")
	}
}

func csiVolume(r *report, s *corev1.CSIPersistentVolumeSource, p *field.Path) {
	r.add(ValidateCSIDriverName(s.Driver, p.Child("driver")))
	r.need(s.VolumeHandle, p, "volumeHandle")
	for _, ref := range []struct {
		ref  *corev1.SecretReference
		name string
	}{
		{s.ControllerPublishSecretRef, "controllerPublishSecretRef"},
		{s.ControllerExpandSecretRef, "controllerExpandSecretRef"},
		{s.NodePublishSecretRef, "nodePublishSecretRef"},
		{s.NodeExpandSecretRef, "nodeExpandSecretRef"},
	} {
		if ref.ref != nil {
			r.needSubdomain(ref.ref.Name, p.Child(ref.name), "name")
			r.needLabel(ref.ref.Namespace, p.Child(ref.name), "namespace")
		}
	}
}

func volumeUpdate(v, old *corev1.PersistentVolume) field.ErrorList {
	r := &report{errs: ValidatePersistentVolumeSpec(&v.Spec, v.Name, false, specPath)}
	source := v.Spec.PersistentVolumeSource
	if source.CSI != nil && old.Spec.CSI != nil && old.Spec.CSI.ControllerExpandSecretRef == nil {
		csi := *source.CSI
		csi.ControllerExpandSecretRef = nil // may be set once
		source.CSI = &csi
	}
	if !equality.Semantic.DeepEqual(source, old.Spec.PersistentVolumeSource) {
		r.forbidden(specPath.Child("persistentvolumesource"), fmt.Sprintf("spec.persistentvolumesource is immutable after creation\n%v",
			diff.Diff(old.Spec.PersistentVolumeSource, source)))
	}
	r.add(validate.Immutable(v.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode")))
	if old.Spec.NodeAffinity != nil && !equality.Semantic.DeepEqual(v.Spec.NodeAffinity, newNodeLabels(v.Spec.NodeAffinity, old.Spec.NodeAffinity)) {
		r.invalid(field.NewPath("nodeAffinity"), v.Spec.NodeAffinity, validate.ImmutableMessage+", except for updating from beta label to GA")
	}
	if old.Spec.VolumeAttributesClassName != nil && v.Spec.VolumeAttributesClassName == nil {
		r.forbidden(specPath.Child("volumeAttributesClassName"), "update from non-nil value to nil is forbidden")
	}
	return r.errs
}

// stableNodeLabels are the names that beta labels of nodes have got.
var stableNodeLabels = map[string]string{
	corev1.LabelFailureDomainBetaZone:   corev1.LabelTopologyZone,
	corev1.LabelFailureDomainBetaRegion: corev1.LabelTopologyRegion,
	"beta.kubernetes.io/os":             corev1.LabelOSStable,
	"beta.kubernetes.io/arch":           corev1.LabelArchStable,
	corev1.LabelInstanceType:            corev1.LabelInstanceTypeStable,
}

// newNodeLabels returns the old affinity, with the stable names of labels where the new one has them.
func newNodeLabels(a, old *corev1.VolumeNodeAffinity) *corev1.VolumeNodeAffinity {
	if a == nil || a.Required == nil || old.Required == nil {
		return old
	}
	out := old.DeepCopy()
	for i := range min(len(a.Required.NodeSelectorTerms), len(out.Required.NodeSelectorTerms)) {
		t, o := &a.Required.NodeSelectorTerms[i], &out.Required.NodeSelectorTerms[i]
		for j := range min(len(t.MatchExpressions), len(o.MatchExpressions)) {
			if stableNodeLabels[o.MatchExpressions[j].Key] == t.MatchExpressions[j].Key {
				o.MatchExpressions[j].Key = t.MatchExpressions[j].Key
			}
		}
	}
	return out
}

func volumeWarnings(v *corev1.PersistentVolume) []string {
	w := &warner{}
	if v.Spec.NodeAffinity != nil && v.Spec.NodeAffinity.Required != nil {
		for i := range v.Spec.NodeAffinity.Required.NodeSelectorTerms {
			w.nodeTerm(&v.Spec.NodeAffinity.Required.NodeSelectorTerms[i], false, specPath.Child("nodeAffinity", "required", "nodeSelectorTerms").Index(i))
		}
	}
	w.oldAnnotation(&v.ObjectMeta, corev1.BetaStorageClassAnnotation, annotationsPath, classAnnotationUnused)
	w.oldAnnotation(&v.ObjectMeta, corev1.MountOptionAnnotation, annotationsPath, `deprecated since v1.31; use "mountOptions" attribute instead`)
	if v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		w.say("%s: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.",
			specPath.Child("persistentVolumeReclaimPolicy"))
	}
	s := &v.Spec
	for _, o := range []struct {
		set     bool
		name    string
		message string
	}{
		{s.PhotonPersistentDisk != nil, "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"},
		{s.ScaleIO != nil, "scaleIO", "deprecated in v1.16, non-functional in v1.22+"},
		{s.StorageOS != nil, "storageOS", "deprecated in v1.22, non-functional in v1.25+"},
		{s.Glusterfs != nil, "glusterfs", "deprecated in v1.25, non-functional in v1.26+"},
		{s.CephFS != nil, "cephfs", "deprecated in v1.28, non-functional in v1.31+"},
		{s.RBD != nil, "rbd", "deprecated in v1.28, non-functional in v1.31+"},
	} {
		if o.set {
			w.say("%s: %s", specPath.Child("persistentVolumeSource").Child(o.name), o.message)
		}
	}
	return w.said
}

func volumeColumns() []api.Column {
	spec, status := corev1.PersistentVolumeSpec{}.SwaggerDoc(), corev1.PersistentVolumeStatus{}.SwaggerDoc()
	type T = *corev1.PersistentVolume
	return []api.Column{
		nameColumn(),
		column("Capacity", "string", spec["capacity"], 0, func(v T) any {
			q := v.Spec.Capacity[corev1.ResourceStorage]
			return q.String()
		}),
		column("Access Modes", "string", spec["accessModes"], 0, func(v T) any { return accessModes(v.Spec.AccessModes) }),
		column("Reclaim Policy", "string", spec["persistentVolumeReclaimPolicy"], 0, func(v T) any { return string(v.Spec.PersistentVolumeReclaimPolicy) }),
		column("Status", "string", status["phase"], 0, func(v T) any { return phase(v, string(v.Status.Phase)) }),
		column("Claim", "string", spec["claimRef"], 0, func(v T) any {
			if v.Spec.ClaimRef == nil {
				return ""
			}
			return v.Spec.ClaimRef.Namespace + "/" + v.Spec.ClaimRef.Name
		}),
		column("StorageClass", "string", "StorageClass of the pv", 0, func(v T) any { return storageClass(&v.ObjectMeta, v.Spec.StorageClassName) }),
		column("VolumeAttributesClass", "string", "VolumeAttributesClass of the pv", 0, func(v T) any {
			return deref(v.Spec.VolumeAttributesClassName, unset)
		}),
		column("Reason", "string", status["reason"], 0, func(v T) any { return v.Status.Reason }),
		ageColumn(),
		column("VolumeMode", "string", spec["volumeMode"], 1, func(v T) any { return string(deref(v.Spec.VolumeMode, unset)) }),
	}
}
