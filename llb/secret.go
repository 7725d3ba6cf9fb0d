package llb

// SecretInfo is a secret that a command gets as a file or a variable.
type SecretInfo struct {
	ID       string
	Target   *string // the file, if any
	Env      *string // the variable, if any
	Mode     int
	UID      int
	GID      int
	Optional bool
}

// SecretOption is an option of [AddSecret].
type SecretOption interface{ SetSecretOption(*SecretInfo) }

type secretOptionFunc func(*SecretInfo)

func (f secretOptionFunc) SetSecretOption(i *SecretInfo) { f(i) }

// SecretFlag is an option without parameters of [AddSecret].
type SecretFlag string

// SecretOptional lets the command run without the secret.
const SecretOptional SecretFlag = "optional"

// SetSecretOption marks the secret as optional.
func (SecretFlag) SetSecretOption(i *SecretInfo) { i.Optional = true }

// AddSecret gives the command a secret as the file dest.
func AddSecret(dest string, opts ...SecretOption) RunOption {
	return AddSecretWithDest(dest, &dest, opts...)
}

// AddSecretWithDest gives the command the secret src as a file.
func AddSecretWithDest(src string, dest *string, opts ...SecretOption) RunOption {
	return runOptionFunc(func(i *ExecInfo) {
		s := &SecretInfo{ID: src, Target: dest, Mode: 0o400}
		for _, o := range opts {
			o.SetSecretOption(s)
		}
		i.Secrets = append(i.Secrets, *s)
	})
}

// SecretID sets the secret's id where it is not the file's name.
func SecretID(id string) SecretOption { return secretOptionFunc(func(i *SecretInfo) { i.ID = id }) }

// SecretAsEnv makes the file name a variable name.
func SecretAsEnv(v bool) SecretOption {
	return secretOptionFunc(func(i *SecretInfo) {
		switch {
		case !v:
			i.Env = nil
		case i.Target != nil:
			name := *i.Target
			i.Env, i.Target = &name, nil
		}
	})
}

// SecretAsEnvName gives the secret as a variable too.
func SecretAsEnvName(name string) SecretOption {
	return secretOptionFunc(func(i *SecretInfo) { i.Env = &name })
}

// SecretFileOpt sets the owner and mode of the file.
func SecretFileOpt(uid, gid, mode int) SecretOption {
	return secretOptionFunc(func(i *SecretInfo) { i.UID, i.GID, i.Mode = uid, gid, mode })
}

func (s *SecretInfo) mount() MountFrom {
	return MountFrom{Mount: Mount{Kind: MountSecret, Dest: *s.Target, Secret: &SecretMount{
		ID: s.ID, UID: uint32(s.UID), GID: uint32(s.GID), Mode: uint32(s.Mode), Optional: s.Optional,
	}}}
}

// SSHInfo is an ssh agent's socket that a command gets.
type SSHInfo struct {
	ID       string
	Target   string
	Mode     int
	UID      int
	GID      int
	Optional bool
}

// SSHOption is an option of [AddSSHSocket].
type SSHOption interface{ SetSSHOption(*SSHInfo) }

type sshOptionFunc func(*SSHInfo)

func (f sshOptionFunc) SetSSHOption(i *SSHInfo) { f(i) }

// SSHFlag is an option without parameters of [AddSSHSocket].
type SSHFlag string

// SSHOptional lets the command run without the agent.
const SSHOptional SSHFlag = "optional"

// SetSSHOption marks the agent as optional.
func (SSHFlag) SetSSHOption(i *SSHInfo) { i.Optional = true }

// AddSSHSocket gives the command an ssh agent. The first is in SSH_AUTH_SOCK.
func AddSSHSocket(opts ...SSHOption) RunOption {
	return runOptionFunc(func(i *ExecInfo) {
		s := &SSHInfo{Mode: 0o600}
		for _, o := range opts {
			o.SetSSHOption(s)
		}
		i.SSH = append(i.SSH, *s)
	})
}

// SSHID sets the agent's id.
func SSHID(id string) SSHOption { return sshOptionFunc(func(i *SSHInfo) { i.ID = id }) }

// SSHSocketTarget sets where the socket is.
func SSHSocketTarget(target string) SSHOption {
	return sshOptionFunc(func(i *SSHInfo) { i.Target = target })
}

// SSHSocketOpt sets where the socket is, its owner and mode.
func SSHSocketOpt(target string, uid, gid, mode int) SSHOption {
	return sshOptionFunc(func(i *SSHInfo) { i.Target, i.UID, i.GID, i.Mode = target, uid, gid, mode })
}

func (s *SSHInfo) mount() MountFrom {
	return MountFrom{Mount: Mount{Kind: MountSSH, Dest: s.Target, Secret: &SecretMount{
		ID: s.ID, UID: uint32(s.UID), GID: uint32(s.GID), Mode: uint32(s.Mode), Optional: s.Optional,
	}}}
}

// CDIDeviceInfo is a device that a command gets.
type CDIDeviceInfo struct {
	Name     string
	Optional bool
}

// CDIDeviceOption is an option of [AddCDIDevice].
type CDIDeviceOption interface{ SetCDIDeviceOption(*CDIDeviceInfo) }

type cdiDeviceOptionFunc func(*CDIDeviceInfo)

func (f cdiDeviceOptionFunc) SetCDIDeviceOption(i *CDIDeviceInfo) { f(i) }

// CDIDeviceFlag is an option without parameters of [AddCDIDevice].
type CDIDeviceFlag string

// CDIDeviceOptional lets the command run without the device.
const CDIDeviceOptional CDIDeviceFlag = "optional"

// SetCDIDeviceOption marks the device as optional.
func (CDIDeviceFlag) SetCDIDeviceOption(i *CDIDeviceInfo) { i.Optional = true }

// CDIDeviceName sets the CDI name of the device.
func CDIDeviceName(name string) CDIDeviceOption {
	return cdiDeviceOptionFunc(func(i *CDIDeviceInfo) { i.Name = name })
}

// AddCDIDevice gives the command a device.
func AddCDIDevice(opts ...CDIDeviceOption) RunOption {
	return runOptionFunc(func(i *ExecInfo) {
		d := &CDIDeviceInfo{}
		for _, o := range opts {
			o.SetCDIDeviceOption(d)
		}
		i.CDIDevices = append(i.CDIDevices, *d)
	})
}
