package state

import (
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// field is where a member of a kernel structure lies in the running kernel.
type field struct {
	offset int16
	size   uint8
}

// layout is where this kernel keeps what the hooks read. It comes from the kernel's own type
// information, so that one binary fits every kernel.
type layout struct {
	tgid, leader, start, execID, mm, cred, parent, fs, nsproxy, comm field // task_struct
	euid                                                             field // cred
	exe, argStart, argEnd, envEnd, code, stack                       field // mm_struct
	filePath                                                         field // file
	pathMnt, pathDentry                                              field // path
	fsRoot                                                           field // fs_struct
	mntNS                                                            field // nsproxy
	mnt, mntParent, mountpoint                                       field // mount
	mntRoot                                                          field // vfsmount
	dParent, dName, dHash, dInode                                    field // dentry
	qName                                                            field // qstr
	hashPprev                                                        field // hlist_bl_node
	ino, sb                                                          field // inode
	dev                                                              field // super_block
}

// readLayout asks the kernel for its layout.
func readLayout() (*layout, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("this kernel has no type information (CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	l := &layout{}
	r := &layoutReader{spec: spec}
	r.structure("task_struct", members{
		"tgid": &l.tgid, "group_leader": &l.leader, "start_boottime": &l.start, "self_exec_id": &l.execID, "mm": &l.mm,
		"cred": &l.cred, "real_parent": &l.parent, "fs": &l.fs, "nsproxy": &l.nsproxy, "comm": &l.comm,
	})
	r.structure("cred", members{"euid": &l.euid})
	r.structure("mm_struct", members{
		"exe_file": &l.exe, "arg_start": &l.argStart, "arg_end": &l.argEnd, "env_end": &l.envEnd,
		"start_code": &l.code, "start_stack": &l.stack,
	})
	r.structure("file", members{"f_path": &l.filePath})
	r.structure("path", members{"mnt": &l.pathMnt, "dentry": &l.pathDentry})
	r.structure("fs_struct", members{"root": &l.fsRoot})
	r.structure("nsproxy", members{"mnt_ns": &l.mntNS})
	r.structure("mount", members{"mnt": &l.mnt, "mnt_parent": &l.mntParent, "mnt_mountpoint": &l.mountpoint})
	r.structure("vfsmount", members{"mnt_root": &l.mntRoot})
	r.structure("dentry", members{"d_parent": &l.dParent, "d_name": &l.dName, "d_hash": &l.dHash, "d_inode": &l.dInode})
	r.structure("qstr", members{"name": &l.qName})
	r.structure("hlist_bl_node", members{"pprev": &l.hashPprev})
	r.structure("inode", members{"i_ino": &l.ino, "i_sb": &l.sb})
	r.structure("super_block", members{"s_dev": &l.dev})
	return l, r.err
}

// members are the wanted members of a structure, by name.
type members map[string]*field

// layoutReader collects fields; err is its first failure.
type layoutReader struct {
	spec *btf.Spec
	err  error
}

// structure fills in the members of one structure.
func (r *layoutReader) structure(name string, want members) {
	if r.err != nil {
		return
	}
	var s *btf.Struct
	if r.err = r.spec.TypeByName(name, &s); r.err != nil {
		r.err = fmt.Errorf("structure %s of this kernel: %w", name, r.err)
		return
	}
	for member, to := range want {
		m, offset := findMember(s.Members, member, 0)
		if m == nil || offset < 0 || offset > 1<<15-1 {
			r.err = fmt.Errorf("this kernel's %s has no %s that the hooks can read", name, member)
			return
		}
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			r.err = fmt.Errorf("size of %s.%s: %w", name, member, err)
			return
		}
		*to = field{offset: int16(offset), size: uint8(min(size, 255))}
	}
}

// findMember looks for a member also in the anonymous structures and unions of a structure.
func findMember(all []btf.Member, name string, base int) (*btf.Member, int) {
	for i, m := range all {
		at := base + int(m.Offset.Bytes())
		if m.Name == name {
			return &all[i], at
		}
		if m.Name != "" {
			continue
		}
		if inner := membersOf(m.Type); inner != nil {
			if found, offset := findMember(inner, name, at); found != nil {
				return found, offset
			}
		}
	}
	return nil, 0
}

func membersOf(t btf.Type) []btf.Member {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		return t.Members
	case *btf.Union:
		return t.Members
	default:
		return nil
	}
}
