package connector

// The reasons of everything that goes wrong at a place. docs/errors.md tells
// operators what to do about each.
const (
	// ReasonSettingsRefused: a setting of the target is missing, unknown or wrong.
	ReasonSettingsRefused = "SETTINGS_REFUSED"
	// ReasonPathNotAllowed: a path does not lie in a folder the host's configuration allows.
	ReasonPathNotAllowed = "PATH_NOT_ALLOWED"
	// ReasonFolderMissing: the folder a file must be written to is not there.
	ReasonFolderMissing = "FOLDER_MISSING"
	// ReasonNotWritable: the folder or file may not be written, or its owner not kept.
	ReasonNotWritable = "NOT_WRITABLE"
	// ReasonDiskFull: no room for the new files.
	ReasonDiskFull = "DISK_FULL"
	// ReasonInstallFailed: reading or writing the files went wrong in another way.
	ReasonInstallFailed = "INSTALL_FAILED"

	// ReasonChainInvalid: what was delivered is no chain.
	ReasonChainInvalid = "CHAIN_INVALID"
	// ReasonChainMismatch: the certificate is for another key.
	ReasonChainMismatch = "CHAIN_MISMATCH"
	// ReasonExpired: the certificate is no longer valid by the host's clock.
	ReasonExpired = "CERTIFICATE_EXPIRED"
	// ReasonNotYetValid: the certificate is not valid yet by the host's clock.
	ReasonNotYetValid = "CERTIFICATE_NOT_YET_VALID"

	// ReasonServerConfigBroken: the server finds its own configuration wrong without the new pair too.
	ReasonServerConfigBroken = "SERVER_CONFIG_BROKEN"
	// ReasonServerNotRunning: there is no server to reload.
	ReasonServerNotRunning = "SERVER_NOT_RUNNING"
	// ReasonConfigRefused: the server finds its configuration wrong with the new pair in it.
	ReasonConfigRefused = "CONFIG_REFUSED"
	// ReasonReloadFailed: the server could not be told to reload.
	ReasonReloadFailed = "RELOAD_FAILED"
	// ReasonHookUnknown: the assignment names a hook the host's configuration does not have.
	ReasonHookUnknown = "HOOK_UNKNOWN"
	// ReasonHookFailed: the reload hook ended with an error or took too long.
	ReasonHookFailed = "HOOK_FAILED"
)
