"""The programs that tests start on several devices and processes are no modules to import."""

collect_ignore = ["device_jobs.py", "process_jobs.py"]
