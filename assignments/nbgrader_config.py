"""The course, as nbgrader sees it. `make release` and `make grade` use these settings; so does `nbgrader` when it is run in this folder."""

c = get_config()

c.CourseDirectory.course_id = ""
c.CourseDirectory.source_directory = "source"
c.CourseDirectory.release_directory = "../book/problem_sets"
c.ClearSolutions.code_stub = {
    "python": "raise NotImplementedError()  # write your code in place of this line"
}
c.ClearSolutions.text_stub = ""
