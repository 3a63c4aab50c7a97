package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// severalVolumes is said of the second source of one volume.
const severalVolumes = "may not specify more than 1 volume type"

// volumeList checks the volumes and notes the good ones, which containers may mount.
func (c *podCheck) volumeList(p *field.Path) {
	c.volumes = make(map[string]*corev1.VolumeSource, len(c.s.Volumes))
	made := c.madeClaims()
	for i := range c.s.Volumes {
		v, at, before := &c.s.Volumes[i], p.Index(i), len(c.errs)
		c.volume(v, at)
		c.needLabel(v.Name, at, "name")
		if c.volumes[v.Name] != nil {
			c.duplicate(at.Child("name"), v.Name)
		}
		if len(c.errs) == before {
			c.volumes[v.Name] = &v.VolumeSource
		}
		if v.PersistentVolumeClaim != nil && made.has(v.PersistentVolumeClaim.ClaimName) {
			c.invalid(at.Child("persistentVolumeClaim", "claimName"), v.PersistentVolumeClaim.ClaimName,
				"must not reference a PVC that gets created for an ephemeral volume")
		}
	}
}

// madeClaims are the claims that are made for ephemeral volumes of this pod.
func (c *podCheck) madeClaims() *names {
	made := &names{}
	if c.meta == nil || c.meta.Name == "" {
		return made
	}
	for i := range c.s.Volumes {
		if c.s.Volumes[i].Ephemeral != nil {
			made.add(c.meta.Name + "-" + c.s.Volumes[i].Name)
		}
	}
	return made
}

// volume checks that one source is given, and that one. The order is upstream's: it
// decides which is the first.
func (c *podCheck) volume(v *corev1.Volume, p *field.Path) {
	s, r := &v.VolumeSource, c.report
	u := &choice{report: r, path: p, several: severalVolumes}
	u.member(s.EmptyDir != nil, "emptyDir", "emptyDir", func(p *field.Path) {
		if q := s.EmptyDir.SizeLimit; q != nil && q.Sign() < 0 {
			r.forbidden(p.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity")
		}
	})
	u.member(s.HostPath != nil, "hostPath", "hostPath", func(p *field.Path) { hostPath(r, s.HostPath, p) })
	u.member(s.GitRepo != nil, "gitRepo", "gitRepo", func(p *field.Path) {
		r.need(s.GitRepo.Repository, p, "repository")
		r.descendingPath(s.GitRepo.Directory, p.Child("directory"))
	})
	u.member(s.GCEPersistentDisk != nil, "gcePersistentDisk", "persistentDisk", func(p *field.Path) {
		gceDisk(r, s.GCEPersistentDisk, p)
	})
	u.member(s.AWSElasticBlockStore != nil, "awsElasticBlockStore", "awsElasticBlockStore", func(p *field.Path) {
		awsDisk(r, s.AWSElasticBlockStore, p)
	})
	u.member(s.Secret != nil, "secret", "secret", func(p *field.Path) {
		r.need(s.Secret.SecretName, p, "secretName")
		fileMode(r, s.Secret.DefaultMode, p, "defaultMode")
		keysToPaths(r, s.Secret.Items, p)
	})
	u.member(s.NFS != nil, "nfs", "nfs", func(p *field.Path) { nfs(r, s.NFS, p) })
	u.member(s.ISCSI != nil, "iscsi", "iscsi", func(p *field.Path) { iscsiPodVolume(r, s.ISCSI, p) })
	if s.ISCSI != nil && s.ISCSI.InitiatorName != nil && len(v.Name+":"+s.ISCSI.TargetPortal) > 64 {
		r.invalid(p.Child("name"), v.Name, iscsiTooLong)
	}
	u.member(s.Glusterfs != nil, "glusterfs", "glusterfs", func(p *field.Path) {
		r.need(s.Glusterfs.EndpointsName, p, "endpoints")
		r.need(s.Glusterfs.Path, p, "path")
	})
	u.member(s.Flocker != nil, "flocker", "flocker", func(p *field.Path) { flocker(r, s.Flocker, p) })
	u.member(s.PersistentVolumeClaim != nil, "persistentVolumeClaim", "persistentVolumeClaim", func(p *field.Path) {
		r.need(s.PersistentVolumeClaim.ClaimName, p, "claimName")
	})
	c.networkVolume(u, s)
	c.fileVolume(u, s)
	u.member(s.Ephemeral != nil, "ephemeral", "ephemeral", func(at *field.Path) { c.ephemeral(v, p, at) })
	u.member(s.Image != nil, "image", "image", func(p *field.Path) {
		r.need(s.Image.Reference, p, "reference")
		needOneOf(r, s.Image.PullPolicy, p, "pullPolicy", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	})
	if !u.taken {
		r.required(p, "must specify a volume type")
	}
}

// networkVolume goes on with the sources from other machines.
func (c *podCheck) networkVolume(u *choice, s *corev1.VolumeSource) {
	r := c.report
	u.member(s.RBD != nil, "rbd", "rbd", func(p *field.Path) { rbd(r, s.RBD.CephMonitors, s.RBD.RBDImage, p) })
	u.member(s.Cinder != nil, "cinder", "cinder", func(p *field.Path) {
		r.need(s.Cinder.VolumeID, p, "volumeID")
		if s.Cinder.SecretRef != nil {
			r.need(s.Cinder.SecretRef.Name, p.Child("secretRef"), "name")
		}
	})
	u.member(s.CephFS != nil, "cephFS", "cephfs", func(p *field.Path) { cephFS(r, s.CephFS.Monitors, p) })
	u.member(s.Quobyte != nil, "quobyte", "quobyte", func(p *field.Path) { quobyte(r, s.Quobyte, p) })
	u.member(s.DownwardAPI != nil, "downwarAPI", "downwardAPI", func(p *field.Path) {
		fileMode(r, s.DownwardAPI.DefaultMode, p, "defaultMode")
		for i := range s.DownwardAPI.Items {
			c.downwardFile(&s.DownwardAPI.Items[i], p)
		}
	})
	u.member(s.FC != nil, "fc", "fc", func(p *field.Path) { fibreChannel(r, s.FC, p) })
	u.member(s.FlexVolume != nil, "flexVolume", "flexVolume", func(p *field.Path) {
		flex(r, s.FlexVolume.Driver, s.FlexVolume.Options, p)
	})
}

// fileVolume goes on with files made of objects and the clouds' disks.
func (c *podCheck) fileVolume(u *choice, s *corev1.VolumeSource) {
	r := c.report
	u.member(s.ConfigMap != nil, "configMap", "configMap", func(p *field.Path) {
		r.need(s.ConfigMap.Name, p, "name")
		fileMode(r, s.ConfigMap.DefaultMode, p, "defaultMode")
		keysToPaths(r, s.ConfigMap.Items, p)
	})
	u.member(s.AzureFile != nil, "azureFile", "azureFile", func(p *field.Path) {
		r.need(s.AzureFile.SecretName, p, "secretName")
		r.need(s.AzureFile.ShareName, p, "shareName")
	})
	u.member(s.VsphereVolume != nil, "vsphereVolume", "vsphereVolume", func(p *field.Path) { r.need(s.VsphereVolume.VolumePath, p, "volumePath") })
	u.member(s.PhotonPersistentDisk != nil, "photonPersistentDisk", "photonPersistentDisk", func(p *field.Path) {
		r.need(s.PhotonPersistentDisk.PdID, p, "pdID")
	})
	u.member(s.PortworxVolume != nil, "portworxVolume", "portworxVolume", func(p *field.Path) { r.need(s.PortworxVolume.VolumeID, p, "volumeID") })
	u.member(s.AzureDisk != nil, "azureDisk", "azureDisk", func(p *field.Path) { azureDisk(r, s.AzureDisk, p) })
	u.member(s.StorageOS != nil, "storageos", "storageos", func(p *field.Path) {
		storageOS(r, s.StorageOS.VolumeName, s.StorageOS.VolumeNamespace, p)
		if s.StorageOS.SecretRef != nil {
			r.need(s.StorageOS.SecretRef.Name, p.Child("secretRef"), "name")
		}
	})
	u.member(s.Projected != nil, "projected", "projected", func(p *field.Path) {
		fileMode(r, s.Projected.DefaultMode, p, "defaultMode")
		c.projections(s.Projected.Sources, p)
	})
	u.member(s.ScaleIO != nil, "scaleIO", "scaleIO", func(p *field.Path) {
		scaleIO(r, s.ScaleIO.Gateway, s.ScaleIO.System, s.ScaleIO.VolumeName, p)
	})
	u.member(s.CSI != nil, "csi", "csi", func(p *field.Path) {
		r.add(ValidateCSIDriverName(s.CSI.Driver, p.Child("driver")))
		if ref := s.CSI.NodePublishSecretRef; ref != nil {
			if ref.Name == "" {
				r.required(p.Child("nodePublishSecretRef", "name"), "")
			} else {
				r.objectName(ref.Name, p, "name", false)
			}
		}
	})
}

func (c *podCheck) ephemeral(v *corev1.Volume, volume, p *field.Path) {
	t := v.Ephemeral.VolumeClaimTemplate
	if t == nil {
		c.required(p.Child("volumeClaimTemplate"), "")
	} else {
		c.add(ValidatePersistentVolumeClaimTemplate(t, p.Child("volumeClaimTemplate")))
	}
	if c.meta == nil || c.meta.Name == "" || v.Name == "" {
		return
	}
	claim := c.meta.Name + "-" + v.Name
	for _, m := range validate.Subdomain(claim, false) {
		c.invalid(volume.Child("name"), v.Name, fmt.Sprintf("PVC name %q: %v", claim, m))
	}
}

const badMode = "must be a number between 0 and 0777 (octal), both inclusive"

func fileMode(r *report, mode *int32, p *field.Path, child string) {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		r.invalid(p.Child(child), *mode, badMode)
	}
}

func keysToPaths(r *report, items []corev1.KeyToPath, p *field.Path) {
	for i := range items {
		keyToPath(r, &items[i], p.Child("items").Index(i))
	}
}

func keyToPath(r *report, k *corev1.KeyToPath, p *field.Path) {
	r.need(k.Key, p, "key")
	r.need(k.Path, p, "path")
	r.localPath(k.Path, p.Child("path"))
	fileMode(r, k.Mode, p, "mode")
}

// downwardFile checks one file of the downward API. Upstream names the list, not the item.
func (c *podCheck) downwardFile(f *corev1.DownwardAPIVolumeFile, p *field.Path) {
	c.need(f.Path, p, "path")
	c.localPath(f.Path, p.Child("path"))
	switch {
	case f.FieldRef != nil:
		c.fieldRef(f.FieldRef, volumeFields, p.Child("fieldRef"))
		if f.ResourceFieldRef != nil {
			c.invalid(p, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
		}
	case f.ResourceFieldRef != nil:
		c.resourceFieldRef(f.ResourceFieldRef, true, p.Child("resourceFieldRef"))
	default:
		c.required(p, "one of fieldRef and resourceFieldRef is required")
	}
	fileMode(c.report, f.Mode, p, "mode")
}

// projectedPaths notes which files the sources of a projected volume make.
type projectedPaths struct {
	*report
	p    *field.Path // of the volume
	seen names
}

// once refuses a path that another source makes; said is the value that upstream names.
func (f *projectedPaths) once(path, said string) {
	if f.seen.add(path) {
		f.invalid(f.p, said, "conflicting duplicate paths")
	}
}

func (c *podCheck) projections(sources []corev1.VolumeProjection, p *field.Path) {
	paths := &projectedPaths{report: c.report, p: p}
	for i := range sources {
		s, at, n := &sources[i], p.Child("sources").Index(i), 0
		if s.Secret != nil {
			n++
			c.projectedKeys(paths, s.Secret.Name, s.Secret.Items, at.Child("secret"))
		}
		if s.ConfigMap != nil {
			n++
			c.projectedKeys(paths, s.ConfigMap.Name, s.ConfigMap.Items, at.Child("configMap"))
		}
		if s.DownwardAPI != nil {
			n++
			for j := range s.DownwardAPI.Items {
				f := &s.DownwardAPI.Items[j]
				c.downwardFile(f, at.Child("downwardAPI"))
				if f.Path != "" {
					paths.once(f.Path, f.Path)
				}
			}
		}
		if s.ServiceAccountToken != nil {
			n++
			c.projectedToken(s.ServiceAccountToken, p, at.Child("serviceAccountToken"))
		}
		if s.ClusterTrustBundle != nil {
			n++
			c.projectedBundle(s.ClusterTrustBundle, at.Child("clusterTrustBundle"))
			paths.once(s.ClusterTrustBundle.Path, s.ClusterTrustBundle.Path)
		}
		if s.PodCertificate != nil {
			n++
			c.projectedCertificate(paths, s.PodCertificate, at.Child("podCertificate"))
		}
		if n > 1 {
			c.forbidden(at, "may not specify more than 1 volume type per source")
		}
	}
}

func (c *podCheck) projectedKeys(paths *projectedPaths, name string, items []corev1.KeyToPath, p *field.Path) {
	c.need(name, p, "name")
	for i := range items {
		keyToPath(c.report, &items[i], p.Child("items").Index(i))
		if items[i].Path != "" {
			paths.once(items[i].Path, name)
		}
	}
}

func (c *podCheck) projectedToken(t *corev1.ServiceAccountTokenProjection, volume, p *field.Path) {
	switch s := t.ExpirationSeconds; {
	case s == nil:
		c.required(p.Child("expirationSeconds"), "")
	case *s < 10*60:
		c.invalid(p.Child("expirationSeconds"), *s, "may not specify a duration less than 10 minutes")
	case *s > 1<<32:
		c.invalid(p.Child("expirationSeconds"), *s, "may not specify a duration larger than 2^32 seconds")
	}
	if t.Path == "" {
		c.required(volume.Child("path"), "")
		return
	}
	c.localPath(t.Path, volume.Child("path"))
}

// projectedBundle follows KEP-3257.
func (c *podCheck) projectedBundle(b *corev1.ClusterTrustBundleProjection, p *field.Path) {
	switch {
	case b.Name != nil && b.SignerName != nil:
		c.invalid(p, b, "only one of name and signerName may be used")
	case b.Name != nil:
		if *b.Name == "" {
			c.required(p.Child("name"), "must be a valid object name")
		}
		for _, m := range TrustBundleName(*b.Name) {
			c.invalid(p.Child("name"), *b.Name, "not a valid clustertrustbundlename: "+m)
		}
		if b.LabelSelector != nil {
			c.invalid(p.Child("labelSelector"), b.LabelSelector, "labelSelector must be unset if name is specified")
		}
	case b.SignerName != nil:
		if *b.SignerName == "" {
			c.required(p.Child("signerName"), "must be a valid signer name")
		}
		c.add(ValidateSignerName(*b.SignerName, p.Child("signerName")))
		c.add(validate.LabelSelector(b.LabelSelector, p.Child("labelSelector")))
	default:
		c.required(p, "either name or signerName must be specified")
	}
	c.need(b.Path, p, "path")
	c.localPath(b.Path, p.Child("path"))
}

// Lifetimes of pod certificates, in seconds (KEP-4317).
const (
	minCertificateLifetime           = 60 * 60
	maxCertificateLifetime           = 91 * 24 * 60 * 60
	maxKubernetesCertificateLifetime = 24 * 60 * 60
)

// projectedCertificate follows KEP-4317.
func (c *podCheck) projectedCertificate(paths *projectedPaths, pc *corev1.PodCertificateProjection, p *field.Path) {
	c.add(ValidateSignerName(pc.SignerName, p.Child("signerName")))
	if pc.UserAnnotations != nil {
		c.userAnnotations(pc.UserAnnotations, p.Child("userAnnotations"))
	}
	oneOf(c.report, pc.KeyType, p, "keyType", "RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519")
	if s := pc.MaxExpirationSeconds; s != nil {
		limit := int32(maxCertificateLifetime)
		if host, _, _ := strings.Cut(pc.SignerName, "/"); host == "kubernetes.io" || strings.HasSuffix(host, ".kubernetes.io") {
			limit = maxKubernetesCertificateLifetime
		}
		if *s < minCertificateLifetime {
			c.invalid(p.Child("maxExpirationSeconds"), *s, fmt.Sprintf("if provided, maxExpirationSeconds must be >= %d", minCertificateLifetime))
		}
		if *s > limit {
			c.invalid(p.Child("maxExpirationSeconds"), *s, fmt.Sprintf("if provided, maxExpirationSeconds must be <= %d", limit))
		}
	}
	some := false
	for _, f := range []struct{ path, child string }{
		{pc.CredentialBundlePath, "credentialBundlePath"},
		{pc.KeyPath, "keyPath"},
		{pc.CertificateChainPath, "certificateChainPath"},
	} {
		if f.path == "" {
			continue
		}
		some = true
		c.localPath(f.path, p.Child(f.child))
		paths.once(f.path, f.path)
	}
	if !some {
		c.required(p, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath")
	}
}

// userAnnotations are for the signer; each has a domain, and they are not too long together.
func (c *podCheck) userAnnotations(annotations map[string]string, p *field.Path) {
	for key := range annotations {
		c.add(content.IsDomainPrefixedKey(p, strings.ToLower(key)))
	}
	if validation.ValidateAnnotationsSize(annotations) != nil {
		c.addOne(field.TooLong(p, "", validation.TotalAnnotationSizeLimitB))
	}
}

// TrustBundleName says what is wrong with the name of a ClusterTrustBundle (KEP-3257): "domain:path:rest" for
// one of the signer domain/path, and a name without colon for one of nobody.
func TrustBundleName(name string) []string {
	return validate.Subdomain(name[strings.LastIndexByte(name, ':')+1:], false)
}

// ValidateSignerName checks the name of a certificate signer: "example.com/name".
func ValidateSignerName(name string, path *field.Path) field.ErrorList {
	r := &report{}
	if name == "" {
		r.required(path, "")
		return r.errs
	}
	domain, rest, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(rest, "/") {
		r.invalid(path, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
		return r.errs
	}
	if len(domain) > maxDomain {
		r.addOne(field.TooLong(path, "", maxDomain))
	}
	labels := strings.Split(domain, ".")
	firstBadLabel(r, path, domain, labels, validate.DNSLabel)
	if len(labels) < 2 {
		r.invalid(path, domain, "should be a domain with at least two segments separated by dots")
	}
	firstBadLabel(r, path, rest, strings.Split(rest, "."), validate.DNSSubdomain)
	if len(name) > maxDomain+maxSignerPath+1 {
		r.addOne(field.TooLong(path, "", maxDomain+maxSignerPath+1))
	}
	return r.errs
}

const (
	maxDomain     = content.DNS1123SubdomainMaxLength
	maxSignerPath = content.DNS1123LabelMaxLength + 1 + content.DNS1123SubdomainMaxLength // namespace.name
)

func firstBadLabel(r *report, p *field.Path, part string, labels []string, check func(string) []string) {
	for _, label := range labels {
		if messages := check(label); len(messages) > 0 {
			for _, m := range messages {
				r.invalid(p, part, fmt.Sprintf("validating label %q: %s", label, m))
			}
			return
		}
	}
}

// ValidatePersistentVolumeClaimTemplate checks the claim that is made for an ephemeral volume.
// Of its metadata only labels and annotations may be set.
func ValidatePersistentVolumeClaimTemplate(t *corev1.PersistentVolumeClaimTemplate, path *field.Path) field.ErrorList {
	r := &report{}
	meta := path.Child("metadata")
	r.add(validate.Annotations(t.Annotations, meta.Child("annotations")))
	r.add(validate.Labels(t.Labels, meta.Child("labels")))
	onlyLabels(r, &t.ObjectMeta, meta)
	r.add(ValidatePersistentVolumeClaimSpec(&t.Spec, path.Child("spec")))
	return r.errs
}

func onlyLabels(r *report, m *metav1.ObjectMeta, p *field.Path) {
	for _, f := range []setField{
		{m.Name != "", "name"},
		{m.GenerateName != "", "generateName"},
		{m.Namespace != "", "namespace"},
		{m.SelfLink != "", "selfLink"},
		{m.UID != "", "uID"},
		{m.ResourceVersion != "", "resourceVersion"},
		{m.Generation != 0, "generation"},
		{!m.CreationTimestamp.IsZero(), "creationTimestamp"},
		{m.DeletionTimestamp != nil, "deletionTimestamp"},
		{m.DeletionGracePeriodSeconds != nil, "deletionGracePeriodSeconds"},
		{m.OwnerReferences != nil, "ownerReferences"},
		{m.Finalizers != nil, "finalizers"},
		{m.ManagedFields != nil, "managedFields"},
	} {
		if f.set {
			r.forbidden(p.Child(f.name), "cannot be set")
		}
	}
}
