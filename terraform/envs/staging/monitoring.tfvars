host = { volume_gb = 50 }
