package main

import (
	"errors"
	"strconv"
)

// addCacheLogin adds to the attributes of a cache what the environment of the
// client says: the daemon has another.
func addCacheLogin(kind string, attrs map[string]string, getenv func(string) string) error {
	switch kind {
	case "gha":
		return addGitHub(attrs, getenv)
	case "s3":
		_, id := attrs["access_key_id"]
		_, secret := attrs["secret_access_key"]
		if id || secret || getenv("AWS_ACCESS_KEY_ID") == "" || getenv("AWS_SECRET_ACCESS_KEY") == "" {
			return nil
		}
		for key, name := range map[string]string{
			"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY", "session_token": "AWS_SESSION_TOKEN",
		} {
			if v := getenv(name); v != "" {
				attrs[key] = v
			}
		}
	}
	return nil
}

// addGitHub adds what the environment of GitHub's workflows says of their cache.
func addGitHub(attrs map[string]string, getenv func(string) string) error {
	set := func(key string, names ...string) {
		for _, name := range names {
			if _, ok := attrs[key]; !ok && getenv(name) != "" {
				attrs[key] = getenv(name)
			}
		}
	}
	version := attrs["version"]
	if v2, err := strconv.ParseBool(getenv("ACTIONS_CACHE_SERVICE_V2")); err == nil && v2 && version == "" {
		version = "2"
	}
	if version == "2" {
		set("url_v2", "ACTIONS_RESULTS_URL")
	}
	set("url", "ACTIONS_CACHE_URL", "ACTIONS_RESULTS_URL")
	set("token", "ACTIONS_RUNTIME_TOKEN")
	switch {
	case attrs["url"] == "" && attrs["url_v2"] == "":
		return errors.New("cache with type gha requires url parameter to be set")
	case attrs["token"] == "":
		return errors.New("cache with type gha requires token parameter or $ACTIONS_RUNTIME_TOKEN")
	}
	return nil
}
