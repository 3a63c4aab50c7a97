package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Names that scheduler, provisioners and whatever binds volumes agree on
// (kubernetes.io/docs/reference/labels-annotations-taints).
const (
	annotationSelectedNode  = "volume.kubernetes.io/selected-node"
	annotationBindCompleted = "pv.kubernetes.io/bind-completed"
	annotationBound         = "pv.kubernetes.io/bound-by-controller"
	annotationClass         = "volume.beta.kubernetes.io/storage-class"
	noProvisioner           = "kubernetes.io/no-provisioner"
)

var (
	csiDrivers    = client.Resource[*storagev1.CSIDriver]{Name: "csidrivers.storage.k8s.io"}
	csiCapacities = client.Resource[*storagev1.CSIStorageCapacity]{Name: "csistoragecapacities.storage.k8s.io"}
)

// volumeZone is one label of a bound volume that says where it is (VolumeZone).
type volumeZone struct {
	volume, key string
	values      []string
}

// zoneLabels are those that VolumeZone compares. Old names on volumes match new ones on nodes.
var zoneLabels = []string{corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion, corev1.LabelTopologyZone, corev1.LabelTopologyRegion} //nolint:staticcheck // volumes may still bear the old ones

// zonesOf are the zone labels of a volume. One label can name several, "a__b".
func zonesOf(v *corev1.PersistentVolume) []volumeZone {
	var all []volumeZone
	for _, key := range zoneLabels {
		if value, ok := v.Labels[key]; ok {
			all = append(all, volumeZone{v.Name, key, strings.Split(value, "__")})
		}
	}
	return all
}

// allows tells whether a node is where the volume is. A node without any zone label is taken to be everywhere.
func (z *volumeZone) allows(n *node) bool {
	value, ok := n.labels[z.key]
	if !ok {
		switch z.key {
		case corev1.LabelFailureDomainBetaZone: //nolint:staticcheck // see zoneLabels
			value, ok = n.labels[corev1.LabelTopologyZone]
		case corev1.LabelFailureDomainBetaRegion: //nolint:staticcheck // see zoneLabels
			value, ok = n.labels[corev1.LabelTopologyRegion]
		}
	}
	if ok {
		return slices.Contains(z.values, value)
	}
	return !slices.ContainsFunc(zoneLabels, func(key string) bool { _, zoned := n.labels[key]; return zoned })
}

// delayed is a claim that gets its volume when its first pod gets a node (WaitForFirstConsumer).
type delayed struct {
	claim *corev1.PersistentVolumeClaim
	class *storagev1.StorageClass
	// selected is the node for which a volume is being provisioned already.
	selected string
	// prebound is the volume that is kept for the claim, choices are those that it could have instead, the smallest first.
	prebound *choice
	choices  []*choice
	// tracked says that the driver tells how much room it has, capacities where.
	tracked    bool
	capacities []capacity
}

// choice is a volume that a claim could be bound to where its node affinity allows.
type choice struct {
	volume *corev1.PersistentVolume
	where  *nodeaffinity.NodeSelector // nil for everywhere
}

func newChoice(v *corev1.PersistentVolume) *choice {
	c := &choice{volume: v}
	if a := v.Spec.NodeAffinity; a != nil && a.Required != nil {
		where, err := nodeaffinity.NewNodeSelector(a.Required)
		if err != nil {
			return nil // it can be reached from nowhere
		}
		c.where = where
	}
	return c
}

func (c *choice) reaches(n *node) bool { return c.where == nil || c.where.Match(n.object) }

type capacity struct {
	where labels.Selector
	size  int64 // of the largest volume that can be made
	total int64 // for scores
}

func classOf(c *corev1.PersistentVolumeClaim) string {
	if class, ok := c.Annotations[annotationClass]; ok {
		return class
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return ""
}

func classOfVolume(v *corev1.PersistentVolume) string {
	if class, ok := v.Annotations[annotationClass]; ok {
		return class
	}
	return v.Spec.StorageClassName
}

// fullyBound tells whether claim and volume belong together for good.
func fullyBound(c *corev1.PersistentVolumeClaim) bool {
	_, done := c.Annotations[annotationBindCompleted]
	return c.Spec.VolumeName != "" && (done || c.Status.Phase == corev1.ClaimBound)
}

func asksStorage(c *corev1.PersistentVolumeClaim) int64 {
	q := c.Spec.Resources.Requests[corev1.ResourceStorage]
	return q.Value()
}

// newDelayed works out what could become of a claim; volume looks volumes up as the scheduler takes them to be.
func newDelayed(snap store.Snapshot, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, volume func(*corev1.PersistentVolume) *corev1.PersistentVolume) *delayed {
	d := &delayed{claim: claim, class: class, selected: claim.Annotations[annotationSelectedNode]}
	if d.selected == "" {
		selector := labels.Everything()
		if claim.Spec.Selector != nil {
			selector = parseSelector(claim.Spec.Selector)
		}
		for v := range client.PersistentVolumes.List(snap, "") {
			d.consider(volume(v), selector)
		}
		slices.SortStableFunc(d.choices, func(a, b *choice) int {
			x, y := a.volume.Spec.Capacity[corev1.ResourceStorage], b.volume.Spec.Capacity[corev1.ResourceStorage]
			return x.Cmp(y)
		})
	}
	if driver, ok := csiDrivers.Get(snap, "", class.Provisioner); ok && driver.Spec.StorageCapacity != nil && *driver.Spec.StorageCapacity {
		d.tracked = true
		for c := range csiCapacities.List(snap, "") {
			if c.StorageClassName == class.Name && c.NodeTopology != nil {
				d.addCapacity(c)
			}
		}
	}
	return d
}

func (d *delayed) addCapacity(c *storagev1.CSIStorageCapacity) {
	most := c.Capacity
	if c.MaximumVolumeSize != nil {
		most = c.MaximumVolumeSize
	}
	if most == nil {
		return
	}
	room := capacity{where: parseSelector(c.NodeTopology), size: most.Value()}
	if c.Capacity != nil {
		room.total = c.Capacity.Value()
	}
	d.capacities = append(d.capacities, room)
}

// consider files a volume if the claim could have it.
func (d *delayed) consider(v *corev1.PersistentVolume, selector labels.Selector) {
	ref := v.Spec.ClaimRef
	mine := ref != nil && ref.Namespace == d.claim.Namespace && ref.Name == d.claim.Name && (ref.UID == "" || ref.UID == d.claim.UID)
	size := v.Spec.Capacity[corev1.ResourceStorage]
	switch {
	case ref != nil && !mine, size.Cmp(d.claim.Spec.Resources.Requests[corev1.ResourceStorage]) < 0, v.DeletionTimestamp != nil,
		modeOf(v.Spec.VolumeMode) != modeOf(d.claim.Spec.VolumeMode), or0(v.Spec.VolumeAttributesClassName) != or0(d.claim.Spec.VolumeAttributesClassName):
		return
	}
	if mine {
		if d.prebound = newChoice(v); d.prebound == nil {
			d.prebound = &choice{volume: v, where: nowhere}
		}
		return
	}
	if v.Status.Phase != corev1.VolumeAvailable || classOfVolume(v) != d.class.Name || !selector.Matches(labels.Set(v.Labels)) {
		return
	}
	for _, mode := range d.claim.Spec.AccessModes {
		if !slices.Contains(v.Spec.AccessModes, mode) {
			return
		}
	}
	if c := newChoice(v); c != nil {
		d.choices = append(d.choices, c)
	}
}

var nowhere, _ = nodeaffinity.NewNodeSelector(&corev1.NodeSelector{})

func modeOf(m *corev1.PersistentVolumeMode) corev1.PersistentVolumeMode {
	if m == nil {
		return corev1.PersistentVolumeFilesystem
	}
	return *m
}

func or0(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// volumePlan is what is to be done about a pod's claims if it goes to a node.
type volumePlan struct {
	bind      []*bindVolume
	provision []*provisionClaim
}

type bindVolume struct {
	volume *corev1.PersistentVolume
	claim  *corev1.PersistentVolumeClaim
}

type provisionClaim struct {
	claim *corev1.PersistentVolumeClaim
	total int64 // the capacity that it is taken from, 0 if it is not known
}

// plan decides what would become of the claims that wait for a node, or why there is no volume for them on this one.
func (cand *candidate) plan(n *node) (volumePlan, *reason) {
	var p volumePlan
	if len(cand.delayed) == 0 {
		return p, nil
	}
	taken := map[string]bool{}
	var provision []*delayed
	for _, d := range cand.delayed {
		switch {
		case d.selected != "" && d.selected != n.name:
			return p, reasonNoBinding
		case d.selected != "":
			provision = append(provision, d)
			continue
		}
		if v := d.choose(n, taken); v != nil {
			taken[v.Name] = true
			p.bind = append(p.bind, &bindVolume{v, d.claim})
		} else {
			provision = append(provision, d)
		}
	}
	for _, d := range provision {
		if d.class.Provisioner == "" || d.class.Provisioner == noProvisioner || !allowed(d.class.AllowedTopologies, n) {
			return p, reasonNoBinding
		}
		total, enough := d.room(n)
		if !enough {
			return p, reasonNoSpace
		}
		p.provision = append(p.provision, &provisionClaim{d.claim, total})
	}
	return p, nil
}

// allowed tells whether a class makes volumes for a node (allowedTopologies): one of the terms has to match, none allow all.
func allowed(terms []corev1.TopologySelectorTerm, n *node) bool {
	if len(terms) == 0 {
		return true
	}
	return slices.ContainsFunc(terms, func(t corev1.TopologySelectorTerm) bool {
		return len(t.MatchLabelExpressions) > 0 && !slices.ContainsFunc(t.MatchLabelExpressions, func(r corev1.TopologySelectorLabelRequirement) bool {
			return !slices.Contains(r.Values, n.labels[r.Key])
		})
	})
}

// choose returns the smallest volume that can be reached from a node and is not taken, nil if there is none.
func (d *delayed) choose(n *node, taken map[string]bool) *corev1.PersistentVolume {
	if d.prebound != nil {
		if d.prebound.reaches(n) && !taken[d.prebound.volume.Name] {
			return d.prebound.volume
		}
		return nil
	}
	for _, c := range d.choices {
		if !taken[c.volume.Name] && c.reaches(n) {
			return c.volume
		}
	}
	return nil
}

// room tells whether the driver has enough for the claim on a node (CSIStorageCapacity).
func (d *delayed) room(n *node) (total int64, enough bool) {
	if _, asks := d.claim.Spec.Resources.Requests[corev1.ResourceStorage]; !asks || !d.tracked {
		return 0, true
	}
	size := asksStorage(d.claim)
	for _, c := range d.capacities {
		if c.size >= size && c.where.Matches(n.labels) {
			return c.total, true
		}
	}
	return 0, false
}

// addVolumes prefers nodes where volumes fill little of what there is: of the volumes that would be bound or, if there are none, of
// the capacity that new ones would be taken from (VolumeBinding with its default shape).
func (c *Cluster) addVolumes(cand *candidate, nodes []*node, scores []int64, weight int64) {
	if len(cand.delayed) == 0 {
		return
	}
	for i, n := range nodes {
		p, _ := cand.plan(n)
		scores[i] += weight * p.score(cand.profile.volumes)
	}
}

func (p *volumePlan) score(line shape) int64 {
	type share struct{ asked, of int64 }
	classes := map[string]*share{}
	class := func(c *corev1.PersistentVolumeClaim) *share {
		name := classOf(c)
		if classes[name] == nil {
			classes[name] = &share{}
		}
		return classes[name]
	}
	for _, b := range p.bind {
		size := b.volume.Spec.Capacity[corev1.ResourceStorage]
		s := class(b.claim)
		s.asked, s.of = s.asked+asksStorage(b.claim), s.of+size.Value()
	}
	if len(p.bind) == 0 {
		for _, v := range p.provision {
			if v.total > 0 {
				s := class(v.claim)
				s.asked, s.of = s.asked+asksStorage(v.claim), v.total
			}
		}
	}
	if len(classes) == 0 {
		return 0
	}
	var sum int64
	for _, s := range classes {
		if s.of > 0 && s.asked <= s.of {
			sum += line.at(s.asked * 100 / s.of)
		} else {
			sum += line.at(100)
		}
	}
	return (2*sum/int64(len(classes)) + 1) / 2
}

// attaches are the volumes that a pod makes a node attach, by a name that is their own, with the driver that does it.
type attaches struct {
	own map[string]string
	// of gives those of a claim, and limits what a node's drivers can attach.
	of     func(claim string) (volume, driver string)
	limits func(node string) map[string]int32
	// attached are those that are attached to a node whoever uses them.
	attached func(node string) map[string]string
	// missing is the driver that has to be on a node, and that does not run there ("" for none).
	missing func(node string) string
}

// allows tells whether a node can attach the pod's volumes beside those of its pods (NodeVolumeLimits).
func (a *attaches) allows(n *node) bool {
	limits := a.limits(n.name)
	if len(limits) == 0 {
		return true
	}
	there := map[string]string{}
	for _, p := range n.pods {
		for _, claim := range p.claims {
			if volume, driver := a.of(claim); driver != "" {
				there[volume] = driver
			}
		}
	}
	fresh := map[string]int{}
	for volume, driver := range a.own {
		if _, already := there[volume]; !already {
			fresh[driver]++
		}
	}
	for volume, driver := range a.attached(n.name) {
		there[volume] = driver
	}
	count := map[string]int{}
	for _, driver := range there {
		count[driver]++
	}
	for driver, more := range fresh {
		if limit, ok := limits[driver]; ok && count[driver]+more > int(limit) {
			return false
		}
	}
	return true
}

// newAttaches returns what a pod's claims attach, nil if nothing.
func newAttaches(snap store.Snapshot, claims []string) *attaches {
	a := &attaches{own: map[string]string{}, of: func(claim string) (string, string) { return attachedFor(snap, claim) }}
	drivers := map[string]bool{}
	for _, claim := range claims {
		if volume, driver := attachedFor(snap, claim); driver != "" {
			a.own[volume] = driver
			drivers[driver] = true
		}
	}
	if len(a.own) == 0 {
		return nil
	}
	a.limits = func(node string) map[string]int32 {
		csi, ok := client.CSINodes.Get(snap, "", node)
		if !ok {
			return nil
		}
		limits := map[string]int32{}
		for i := range csi.Spec.Drivers {
			if d := &csi.Spec.Drivers[i]; d.Allocatable != nil && d.Allocatable.Count != nil {
				limits[d.Name] = *d.Allocatable.Count
			}
		}
		return limits
	}
	a.attached = func(node string) map[string]string {
		all := map[string]string{}
		for va := range client.VolumeAttachments.List(snap, "") {
			if va.Spec.NodeName != node || va.Spec.Source.PersistentVolumeName == nil || !drivers[va.Spec.Attacher] {
				continue
			}
			if v, ok := client.PersistentVolumes.Get(snap, "", *va.Spec.Source.PersistentVolumeName); ok && v.Spec.CSI != nil {
				all[v.Spec.CSI.Driver+"/"+v.Spec.CSI.VolumeHandle] = v.Spec.CSI.Driver
			}
		}
		return all
	}
	a.missing = missingDriver(snap, drivers)
	return a
}

// missingDriver finds drivers that have to run on a node before pods come (CSIDriver's preventPodSchedulingIfMissing).
func missingDriver(snap store.Snapshot, drivers map[string]bool) func(node string) string {
	var needed []string
	for name := range drivers {
		if d, ok := csiDrivers.Get(snap, "", name); ok && d.Spec.PreventPodSchedulingIfMissing != nil && *d.Spec.PreventPodSchedulingIfMissing {
			needed = append(needed, name)
		}
	}
	slices.Sort(needed)
	return func(node string) string {
		if len(needed) == 0 {
			return ""
		}
		csi, _ := client.CSINodes.Get(snap, "", node)
		for _, name := range needed {
			if csi == nil || !slices.ContainsFunc(csi.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == name }) {
				return name
			}
		}
		return ""
	}
}

// attachedFor is the CSI volume behind a claim; while there is none it has the claim's name.
func attachedFor(snap store.Snapshot, name string) (volume, driver string) {
	namespace, plain, _ := strings.Cut(name, "/")
	claim, ok := client.PersistentVolumeClaims.Get(snap, namespace, plain)
	if !ok {
		return "", ""
	}
	if claim.Spec.VolumeName != "" {
		if v, ok := client.PersistentVolumes.Get(snap, "", claim.Spec.VolumeName); ok {
			if v.Spec.CSI == nil {
				return "", ""
			}
			return v.Spec.CSI.Driver + "/" + v.Spec.CSI.VolumeHandle, v.Spec.CSI.Driver
		}
	}
	class, ok := client.StorageClasses.Get(snap, "", classOf(claim))
	if !ok || class.Provisioner == noProvisioner {
		return "", ""
	}
	return class.Provisioner + "/claim of " + name, class.Provisioner
}

// disk is an old kind of volume that not every two pods of one node can use (VolumeRestrictions).
type disk struct {
	kind, id string
	monitors []string // of which one has to be the same; nil: any
	readOnly bool
}

func disksOf(p *corev1.Pod) []disk {
	var all []disk
	for i := range p.Spec.Volumes {
		switch v := &p.Spec.Volumes[i]; {
		case v.GCEPersistentDisk != nil:
			all = append(all, disk{"gce", v.GCEPersistentDisk.PDName, nil, v.GCEPersistentDisk.ReadOnly})
		case v.AWSElasticBlockStore != nil:
			all = append(all, disk{"aws", v.AWSElasticBlockStore.VolumeID, nil, false})
		case v.ISCSI != nil:
			all = append(all, disk{"iscsi", v.ISCSI.IQN, nil, v.ISCSI.ReadOnly})
		case v.RBD != nil:
			all = append(all, disk{"rbd", v.RBD.RBDPool + "/" + v.RBD.RBDImage, v.RBD.CephMonitors, v.RBD.ReadOnly})
		}
	}
	return all
}

func (d *disk) clashes(o *disk) bool {
	return d.kind == o.kind && d.id == o.id && !(d.readOnly && o.readOnly) &&
		(d.kind != "rbd" || slices.ContainsFunc(d.monitors, func(m string) bool { return slices.Contains(o.monitors, m) }))
}

func (n *node) diskTaken(disks []disk) bool {
	for _, p := range n.pods {
		for i := range p.disks {
			for k := range disks {
				if disks[k].clashes(&p.disks[i]) {
					return true
				}
			}
		}
	}
	return false
}

// claim takes a claim of the pod into account, and returns why the pod cannot be scheduled yet.
func (s *Scheduler) claim(about *Circumstances, snap store.Snapshot, pod *corev1.Pod, name string, ephemeral bool) string {
	claim, ok := client.PersistentVolumeClaims.Get(snap, pod.Namespace, name)
	switch {
	case !ok && ephemeral:
		return fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
	case !ok:
		return fmt.Sprintf("persistentvolumeclaim %q not found", name)
	case claim.Status.Phase == corev1.ClaimLost:
		return fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
	case claim.DeletionTimestamp != nil:
		return fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
	case ephemeral && !metav1.IsControlledBy(claim, pod):
		return fmt.Sprintf("PVC %s/%s was not created for pod %s/%s (pod is not owner)", claim.Namespace, name, pod.Namespace, pod.Name)
	}
	claim = s.assumed.claim(claim)
	if slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) && !ephemeral {
		about.Exclusive = append(about.Exclusive, claim.Namespace+"/"+name)
	}
	if !fullyBound(claim) {
		class, ok := client.StorageClasses.Get(snap, "", classOf(claim))
		if claim.Spec.VolumeName != "" || !ok || class.VolumeBindingMode == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer {
			return "pod has unbound immediate PersistentVolumeClaims"
		}
		about.delayed = append(about.delayed, newDelayed(snap, claim, class, s.assumed.volume))
		return ""
	}
	volume, ok := client.PersistentVolumes.Get(snap, "", claim.Spec.VolumeName)
	if !ok {
		return fmt.Sprintf("persistentvolume %q not found", claim.Spec.VolumeName)
	}
	if a := volume.Spec.NodeAffinity; a != nil && a.Required != nil {
		about.Volumes = append(about.Volumes, a)
	}
	about.zones = append(about.zones, zonesOf(volume)...)
	return ""
}

// finishClaims orders the claims that wait for a node by size, so that the smallest get the smallest volumes.
func (about *Circumstances) finishClaims(snap store.Snapshot, claims []string) {
	slices.SortStableFunc(about.delayed, func(a, b *delayed) int { return cmp.Compare(asksStorage(a.claim), asksStorage(b.claim)) })
	about.attach = newAttaches(snap, claims)
}
